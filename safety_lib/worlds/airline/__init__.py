"""A second world: the refund desk of an airline, an agent of its own brought in as a callable."""
