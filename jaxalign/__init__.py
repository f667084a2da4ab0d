"""Offline preference alignment of causal language models in JAX."""
