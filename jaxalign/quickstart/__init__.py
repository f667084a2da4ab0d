"""The small world of the quickstart: its data, its model, its reward."""
