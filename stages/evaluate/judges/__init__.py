"""Judges of where a tumour lies, one file each: `Settings`, `CHECKED_ON`, `refuse`, `obtain`."""
