"""Labels and logits -> numbers."""
