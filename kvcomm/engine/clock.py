"""When work on a device is done: Python goes on as soon as it has been started."""

from __future__ import annotations

import time

import torch


def wait_for(device: torch.device | str) -> None:
    """Return when `device` has done what it was given. A CPU has, always."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def done_at(device: torch.device | str) -> float:
    """`time.perf_counter()` when `device` has done what it was given: for timing work on it."""
    wait_for(device)
    return time.perf_counter()
