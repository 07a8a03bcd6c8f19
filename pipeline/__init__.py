"""Contracts and plumbing of mrisynth; nothing here imports image or model code."""
