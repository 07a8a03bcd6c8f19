"""Captioners, one file each: `Settings`, `load(settings) -> Captioner`."""
