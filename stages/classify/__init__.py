"""Real and synthetic slices in, classifiers and their scores out."""
