"""A trained model speaks, and is scored."""
