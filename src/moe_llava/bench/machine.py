"""What the machine is, and what it can do at most: operations and bytes a second."""

import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from moe_llava.bench.timing import Spread, interleave, timed
from moe_llava.train.folder import environment

MATRIX = (1280, 2048, 11264)  # tokens, columns and rows: a prompt's rows through one expert of StableLM's width
STREAM_BYTES = 2**28  # beyond any cache


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    facts = environment() | {
        "processor": _processor(),
        "memory_gib": round(_memory() / 2**30, 1),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def matmul_rate(dtype: torch.dtype, device: torch.device, rounds: int = 7) -> Spread:
    """Floating-point operations a second of a large matrix product."""
    tokens, columns, rows = MATRIX
    left, weight = torch.randn(tokens, columns, device=device).to(dtype), torch.randn(rows, columns, device=device)
    weight = weight.to(dtype)
    timings = interleave({"product": timed(lambda: F.linear(left, weight))}, rounds)
    return Spread.of([2 * tokens * columns * rows / one for one in timings.seconds["product"]])


def read_rate(device: torch.device, rounds: int = 7) -> Spread:
    """Bytes a second of reading memory beyond the caches: the best of a sum, a maximum and matrix times vector."""
    flat = torch.randint(2**30, (STREAM_BYTES // 8,), device=device)
    matrix = torch.ones(STREAM_BYTES // 2 // 2048, 2048, dtype=torch.bfloat16, device=device)
    vectors = {count: torch.ones(count, 2048, dtype=torch.bfloat16, device=device) for count in (1, 4)}
    runs = {
        "sum": timed(lambda: flat.sum()),
        "maximum": timed(lambda: flat.max()),
        "vector": timed(lambda: F.linear(vectors[1], matrix)),
        "vectors": timed(lambda: F.linear(vectors[4], matrix)),
    }
    timings = interleave(runs, rounds)
    best = min(runs, key=lambda name: timings.spread(name).median)
    return Spread.of([STREAM_BYTES / one for one in timings.seconds[best]])
