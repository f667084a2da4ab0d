"""A report of a run, from its folder."""
