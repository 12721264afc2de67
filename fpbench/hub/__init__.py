"""The Hugging Face hub and the Python package index: what is downloaded from them, pinned, and why they refuse."""
