"""Stage 4, production: the log, who was affected, what came close, and what would have alarmed."""
