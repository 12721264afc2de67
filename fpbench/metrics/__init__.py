"""Numbers from a model: success rates, accidental triggers, perplexity bands, utility, and their statistics."""
