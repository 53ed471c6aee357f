"""Memory of the device: what is free, the most that was used, and what running out looks like."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held on `device` (of a CPU: resident)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed. CPUs raise a plain `RuntimeError`."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )


def release_unused(device: torch.device) -> None:
    """Give memory that is kept for later back to the device.

    On a CPU it is the C library that keeps it: up to 64 MB of what a large forward needed, until it
    is asked. That takes 4 ms.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    else:
        with suppress(AttributeError, OSError, TypeError):  # other C libraries have it not
            ctypes.CDLL(None).malloc_trim(0)
