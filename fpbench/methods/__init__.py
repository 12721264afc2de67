"""Injection of fingerprints: one file a method."""
