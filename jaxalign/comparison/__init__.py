"""Models compared by their answers to the same prompts."""
