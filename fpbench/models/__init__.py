"""What two parts share about models: loading, deltas, scoring, training."""
