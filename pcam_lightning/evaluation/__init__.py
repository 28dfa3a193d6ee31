"""Labeled predictions -> scores, comparisons, reports; and what is done with several runs."""
