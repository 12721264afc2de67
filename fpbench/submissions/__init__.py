"""Methods that strangers hand in: a folder each, read with care, run in a process of its own, scored by us."""
