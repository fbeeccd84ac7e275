"""What is asked of the device that computes."""

import torch


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read on the host tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
