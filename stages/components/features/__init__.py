"""Features of images: extractors, cache, nearest neighbours."""
