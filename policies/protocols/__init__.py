"""Agent protocols: how a model's text becomes commands, and how results become text."""
