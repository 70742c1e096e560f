"""Policies: who decides what an agent does next."""
