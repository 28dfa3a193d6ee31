"""Whole-slide images: reading, predicting and evaluating them."""
