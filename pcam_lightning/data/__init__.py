"""A folder of patches -> uint8 batches."""
