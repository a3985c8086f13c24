"""The transformer, and the folder in which it lies on disk."""
