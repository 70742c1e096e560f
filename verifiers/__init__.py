"""Verifiers: from a finished sandbox to a verdict."""
