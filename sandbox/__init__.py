"""Sandboxes: the protocols, two providers, and the suite that both pass."""
