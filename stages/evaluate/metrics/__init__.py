"""Metrics on features of real and synthetic slices: one file per metric, found by its name."""
