"""Measurements on disk: cells, records and where they come from."""
