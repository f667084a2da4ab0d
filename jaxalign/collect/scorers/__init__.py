"""Scorers: numbers for the answers of a prompt."""
