"""Waiting for the device; apart, so that the baseline loads nothing that it does not use."""

import torch


def wait_for_device() -> None:
    """Wait until the GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
