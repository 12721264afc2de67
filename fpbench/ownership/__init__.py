"""Whose model it is: null rates and claims."""
