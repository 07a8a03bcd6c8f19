"""Slices in, captions out."""
