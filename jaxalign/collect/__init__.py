"""A model makes data: sampled answers, density ratios."""
