"""Where planned work runs."""
