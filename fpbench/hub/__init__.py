"""The Hugging Face hub: what is downloaded from it, pinned to a commit, and why it refuses."""
