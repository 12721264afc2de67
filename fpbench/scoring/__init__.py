"""Exact probabilities of texts, by one engine that reads what prompts share once."""
