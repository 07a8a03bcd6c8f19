"""Scans in, slices with splits out."""
