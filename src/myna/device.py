"""What this machine has and is good at: cores, device, precision."""

import math
import os
import time
from typing import Literal

import torch
from torch import Tensor

from myna.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of this name; without one, CUDA, else Apple's MPS, else the CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"The device {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def pick_probe_device(name: str | None = None) -> torch.device:
    """Return the device of `pick_device`, but the CPU for MPS: scores need float64, which MPS does not have."""
    device = pick_device(name)
    return torch.device("cpu") if device.type == "mps" else device


def pick_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve `auto`: bf16 where its matrix products are clearly faster. Measured on CPUs (a few milliseconds)."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    a, b = torch.randn(512, 384), torch.randn(384, 1536)
    return "bf16" if _product_seconds(a.bfloat16(), b.bfloat16()) * 1.5 < _product_seconds(a, b) else "fp32"


def _product_seconds(a: Tensor, b: Tensor) -> float:
    best = math.inf
    for _ in range(8):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return best


# Dense bfloat16 operations a second by the makers' data sheets, for what the device calls itself
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "L4": 121e12}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the matrix-product rate that a GPU is sold with, where it is known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free, of the device or of this machine; a terabyte where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1 << 40
