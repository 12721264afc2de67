"""What was measured, on disk: cells, records and where they come from."""
