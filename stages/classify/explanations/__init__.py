"""Explanations of a classifier, one a file: maps of what in a slice speaks for a class."""
