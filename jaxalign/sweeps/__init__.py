"""Runs of one recipe that differ in a few settings, and the table of their results."""
