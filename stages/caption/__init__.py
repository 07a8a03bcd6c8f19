"""Caption stage: slices in, captions out."""
