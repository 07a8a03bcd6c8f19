"""Data sources, one file each: `Settings`, `iter_scans`, `tiny(tmp) -> Settings`, `check`.

A source that knows beforehand how many scans it will yield says so in `count_scans(settings)`.
"""
