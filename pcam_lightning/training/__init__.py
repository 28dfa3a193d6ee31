"""One run: the trainer, its callbacks, checkpoints and predictions."""
