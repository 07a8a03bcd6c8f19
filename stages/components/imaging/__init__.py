"""Pixels, heads and scans; no model, no torch."""
