"""Device synchronization, in a separate file so that the baseline imports nothing else."""

import torch


def wait_for_device() -> None:
    """Wait until the GPU, if any, has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
