"""Resampling, proportions, estimates and cohorts."""
