"""Stage 1, stress: find failures, and say when in a conversation they come."""
