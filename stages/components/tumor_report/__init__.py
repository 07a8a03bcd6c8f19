"""The caption schema: words, rendering, parsing, ground truth, agreement."""
