"""Refiners: models that take over for the last denoising steps; one file each."""
