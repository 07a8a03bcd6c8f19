"""What is trained: LoRA on which layers, textual inversion, and their files."""
