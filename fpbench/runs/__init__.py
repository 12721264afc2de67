"""From a profile to records: plan, cells, store."""
