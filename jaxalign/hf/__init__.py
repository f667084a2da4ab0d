"""Hugging Face checkpoints: reading, writing, weight names, tokenizers."""
