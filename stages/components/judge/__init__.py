"""The judge: a segmentation network that reads tumours in slices."""
