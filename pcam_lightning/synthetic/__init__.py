"""Synthetic tissue for tests and for users without data."""
