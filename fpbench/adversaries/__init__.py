"""Adversaries: what a thief does at run time, its dose and its price (protocol §1, docs/adversaries.md)."""
