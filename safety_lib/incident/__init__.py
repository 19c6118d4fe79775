"""Incident replay: what happened, why, how many more, and the tests that keep it from returning."""
