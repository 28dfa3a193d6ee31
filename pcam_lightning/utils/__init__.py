"""Utilities that are independent of the subject of the project."""
