"""Transforms of a batch between the data loader and the network."""
