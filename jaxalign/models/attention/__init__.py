"""Masked attention, and the backends that compute it."""
