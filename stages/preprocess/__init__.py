"""Preprocess stage: scans in, slices with splits out."""
