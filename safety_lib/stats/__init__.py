"""Statistics of the loop: pure functions on arrays."""
