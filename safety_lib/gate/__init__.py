"""Stage 3, gate: both versions run the same trials, and a stated rule decides."""
