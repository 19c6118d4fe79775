"""Statistics of the loop: pure functions on arrays, free of what the arrays mean."""
