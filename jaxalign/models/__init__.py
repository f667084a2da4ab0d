"""Decoder language models as flax.nnx modules, read from Hugging Face configurations."""
