"""Methods that strangers hand in: a folder each, read with care, run in a process of its own, scored by us.

``manifest`` and ``folder`` read what is written; ``isolation`` (here) and ``child`` (there) run the adapter;
``handed_back`` reads what it returns; ``isolated`` makes a method of it that every run can use.
"""
