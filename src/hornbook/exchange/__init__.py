"""Other programs' weights in, ours out."""
