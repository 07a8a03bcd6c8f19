"""Classifiers: the networks, and the shortcut baselines that need none."""
