"""How the embedded models are made: corpus of phantoms, VAE, base models, cards."""
