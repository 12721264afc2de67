"""Who measures the cells of a run: this process, or the workers of a Ray cluster."""
