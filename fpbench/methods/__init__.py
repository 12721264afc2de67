"""How fingerprints are injected: one file a method."""
