"""A run on the disk, for all who read one: what it is, how it went, and which of its models is meant."""
