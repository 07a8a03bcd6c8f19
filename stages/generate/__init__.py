"""An adapter and prompts in, synthetic slices out."""
