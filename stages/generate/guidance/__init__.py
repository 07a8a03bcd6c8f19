"""What steers sampling beside the prompt; one file each, found by its name."""
