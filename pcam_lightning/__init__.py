"""Train, judge and ship a classifier for PatchCamelyon, Kaggle's Histopathologic Cancer Detection."""

__version__ = "0.1.0"
