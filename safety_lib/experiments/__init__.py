"""What measures the method itself: error rates, coverage, accuracy. No user's run needs it."""
