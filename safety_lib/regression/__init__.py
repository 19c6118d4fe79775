"""Stage 2, regression: failures become permanent tests that are known to come back."""
