"""Scores, comparisons and reports of labeled predictions, and experiments with several runs."""
