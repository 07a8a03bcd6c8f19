"""Report stage: every artifact in, the page out."""
