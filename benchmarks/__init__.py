"""Measurements against other programs and against closed forms; each prints one table."""
