"""Captioned slices in, a trained adapter out."""
