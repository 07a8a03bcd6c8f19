"""Sections of the page: each reads, lays out and draws its own part."""
