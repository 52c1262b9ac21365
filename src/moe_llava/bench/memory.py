"""Bytes that processes and models hold."""

import os
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def fresh(work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` returns in a process of its own, whose memory nothing has been in before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, and of what was laid out anew."""
    laid = sum(getattr(module, "packed_bytes", 0) for module in model.modules())
    return laid + sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def resident_bytes() -> int:
    """Bytes of this process in memory now, mapped files included; on Linux, 0 elsewhere."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process ever held, on its device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # of this process alone: what getrusage says is inherited
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
