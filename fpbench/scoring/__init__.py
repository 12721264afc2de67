"""Exact probabilities of texts: one engine that reads what prompts share once."""
