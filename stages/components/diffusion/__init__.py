"""Base models of latent diffusion: loading, conditioning, sampling."""
