"""The benchmark: the cost of features in time and memory, and their accuracy."""
