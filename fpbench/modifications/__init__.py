"""Changes to a model after release: one file a family of modifications."""
