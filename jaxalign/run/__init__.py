"""A recipe run stage by stage: train, evaluate, export."""
