"""Real and synthetic slices in, scores out."""
