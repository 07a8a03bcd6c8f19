"""Data sources, one file each: `Settings`, `iter_scans`, `tiny(tmp) -> Settings`, `check`."""
