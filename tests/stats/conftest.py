from hypothesis import settings

# The first example pays for a lazy import, and a red build must be reproducible.
settings.register_profile("stats", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("stats")
