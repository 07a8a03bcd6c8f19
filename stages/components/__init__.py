"""Parts that stages assemble; plug-ins are found by their file names."""
