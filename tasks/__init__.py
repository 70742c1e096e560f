"""Tasks: what they are and how each public format is read."""
