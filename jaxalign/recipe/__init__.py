"""Recipes: read, checked, compared."""
