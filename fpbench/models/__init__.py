"""Weights on disk and in memory: checkpoints, loading, layout, deltas, prompts, training."""
