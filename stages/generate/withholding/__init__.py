"""Rules for what counts as a copy of a training slice; one file each, found by its name."""
