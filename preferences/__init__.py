"""Preference pairs and training data out of stored runs; it reads the store and nothing else."""

from headrace.preferences.following import follow
from headrace.preferences.pair import Pair, Pairing
from headrace.preferences.rules import Rule

__all__ = ["Pair", "Pairing", "Rule", "follow"]
