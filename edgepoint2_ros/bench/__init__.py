"""The benchmark: what features cost in time and memory, and what they are worth for it."""
