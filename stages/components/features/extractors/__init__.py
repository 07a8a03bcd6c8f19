"""Feature extractors: one file per network, found by its name."""
