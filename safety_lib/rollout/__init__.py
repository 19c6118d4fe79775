"""Rollouts: one conversation between attacker, agent and oracle, and campaigns of many."""
