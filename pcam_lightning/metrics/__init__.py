"""Metrics computed from labels and logits."""
