"""Phantom corpora that embedded models are trained on."""
