"""Who judges where a tumour lies, one file each: `Settings`, `refuse`, `obtain`."""
