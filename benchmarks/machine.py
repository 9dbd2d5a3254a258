"""What every benchmark shares: where it ran, how it times, how it writes its result."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


def describe(device: str = "cpu") -> dict[str, Any]:
    """Say what hardware and software a result belongs to, and the month; nothing that names the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{names[0]} x {len(names)}" if names else cpu
    gpu = {"gpu": torch.cuda.get_device_name()} if device.startswith("cuda") else {}
    return {
        "cpu": cpu,
        **gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "month": datetime.now(timezone.utc).strftime("%Y-%m"),
    }


def side_by_side(work: dict[str, Callable[[], object]], *, rounds: int = 7) -> dict[str, float]:
    """Time several pieces of work in turn, round by round, and return each one's median seconds.

    In turn, because the speed of a shared machine drifts: what stands in one round was measured in one weather.
    """
    for run in work.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay rows of text out in columns, the first row as head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write(result: dict[str, Any], out: str | Path | None) -> None:
    """Write a result as JSON, if a file was named."""
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
