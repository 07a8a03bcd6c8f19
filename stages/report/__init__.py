"""Every artifact in, the page out."""
