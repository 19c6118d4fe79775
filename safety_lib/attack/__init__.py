"""Attacks: goals and tactics in ordinary language, and attackers that use the feedback they get."""
