"""Three-dimensional head phantoms with known anatomy, contrast and tumours."""
