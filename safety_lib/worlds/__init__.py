"""The worlds that come along: each is a folder, and nothing outside knows what is in it."""
