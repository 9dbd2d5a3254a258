"""How the cost of pre-training grows: with the batch, the size of the store, ranks and threads. On the CPU.

    .venv/bin/python benchmarks/bench_scale.py --out benchmarks/results/scale-<machine>-<month>.json

The stores are made of holes: they are as large as real ones and read as silence. The data path is timed on steps that
have been read once before, so that it is the path that is measured and not the disk or the first touch of a page.
Every number is the median over rounds; ranks are processes that `torchrun` starts, their speed the last logged row's.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

import machine
from myna import recipe
from myna.contrast import contrastive
from myna.model import MynaModel
from myna.run import Settings, read_metrics
from myna.step import Step
from myna.store import Store
from myna.view import VIEWS, Clips, HostRows, Loader
from synthetic import synthetic_store

MICRO_BATCH = 512  # clips that go through the encoder at once, whatever the batch
LARGEST_STEP = 16_384  # of larger batches only data and loss are timed: the rest of a step costs the same a clip
Rows = list[dict[str, Any]]


def seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Return the median time of some rounds; the first run is left out unless it takes long."""
    times = []
    while len(times) < rounds + 1 and sum(times) < 60:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return median(times[1:] or times)


def loader_of(store: Store, settings: Settings, batch: int, *, threads: int = 1) -> Loader:
    rows = HostRows(store.files, threads=threads)
    return Loader(store, settings.view, settings.model.grids(), batch=batch, seed=0, rows=rows)


def data_seconds(loader: Loader, *, rounds: int) -> float:
    """Return the time of a batch, of the first few steps of an epoch, each read for the second time."""
    steps = range(min(4, loader.steps_per_epoch))
    for step in steps:
        loader(step)
    number = count()
    return seconds(lambda: loader(steps[next(number) % len(steps)]), rounds=rounds)


def over_batches(store: Store, settings: Settings, batches: list[int], *, rounds: int) -> Rows:
    """Time the data path, the loss alone and the whole step in exact micro-batches."""
    found, model = [], MynaModel(settings.model)
    step = Step(model, settings.loss, micro_batch=MICRO_BATCH)
    for batch in batches:
        loader = loader_of(store, settings, batch)
        z = torch.randn(VIEWS, batch, settings.model.projector_dim, requires_grad=True)
        views = loader(0)
        spent = {
            "data": data_seconds(loader, rounds=rounds),
            "loss": seconds(lambda z=z: contrastive(*z)[0].backward(), rounds=rounds),
        }
        if batch <= LARGEST_STEP:
            spent["step"] = seconds(lambda views=views: step(views), rounds=1 if batch > 4096 else rounds)
        found.append({"batch": batch, **{f"{name}_clips_per_s": batch / s for name, s in spent.items()}})
        print(found[-1], flush=True)
    return found


def over_stores(folder: Path, settings: Settings, sizes: list[int], *, batch: int, rounds: int) -> Rows:
    """Time what depends on the number of clips: opening, the order of an epoch, and a batch."""
    found = []
    for clips in sizes:
        store = synthetic_store(folder / f"store-{clips}", clips, holes=True)
        size = min(batch, clips)
        open_s = seconds(lambda store=store: Store.open(store.path), rounds=1)
        cut = Clips(store, clip_seconds=settings.view.clip_seconds, crop_frames=96)
        epoch = count()
        order_s = seconds(lambda c=cut, e=epoch, b=size: c.order(seed=0, epoch=next(e), batch=b), rounds=rounds)
        data_s = data_seconds(loader_of(store, settings, size), rounds=rounds)
        found.append({"clips": clips, "open_s": open_s, "order_s": order_s, "data_clips_per_s": size / data_s})
        found[-1]["order_us_per_clip"] = 1e6 * order_s / clips
        print(found[-1], flush=True)
    return found


def over_ranks(folder: Path, store: Store, ranks: list[int], *, batch: int, steps: int) -> Rows:
    """Train the tiny recipe with one thread a rank, and read the speed that it logs."""
    found = []
    for size in ranks:
        run = folder / f"run-{size}"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "--max-restarts=3"]
        command = [sys.executable, *(launch if size > 1 else []), "-m", "myna", "pretrain", str(store.path)]
        command += ["-o", str(run), "--recipe", "tiny", "--batch", str(batch), "--steps", str(steps)]
        command += ["--log-every", str(steps // 2), "--precision", "fp32", "--micro-batch", "off", "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MYNA_PATIENCE_S": "60"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        found.append({"ranks": size, "clips_per_s": read_metrics(run)[-1]["clips_per_s"]})
        print(found[-1], flush=True)
    return found


def over_threads(store: Store, settings: Settings, threads: list[int], *, batch: int, rounds: int) -> Rows:
    found = []
    for number in threads:
        torch.set_num_threads(number)
        loader = loader_of(store, settings, batch, threads=number)
        step = Step(MynaModel(settings.model), settings.loss)
        views = loader(0)
        spent = {
            "data": data_seconds(loader, rounds=rounds),
            "step": seconds(lambda step=step, views=views: step(views), rounds=rounds),
        }
        found.append({"threads": number, **{f"{name}_clips_per_s": batch / s for name, s in spent.items()}})
        print(found[-1], flush=True)
    torch.set_num_threads(1)
    return found


def show(rows: Rows) -> None:
    def told(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.3g}"

    print(machine.table([tuple(rows[0]), *(tuple(told(row.get(name)) for name in rows[0]) for row in rows)]) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--recipe", default="tiny", help="of the step; the data path is the same for all")
    arguments.add_argument("--batches", type=int, nargs="*", default=[256, 1024, 4096, 16_384, 65_536])
    arguments.add_argument("--stores", type=int, nargs="*", default=[1_000, 10_000, 100_000, 1_000_000])
    arguments.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 3, 4])
    arguments.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--out")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = recipe.get(options.recipe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = synthetic_store(folder / "store", max(options.batches), holes=True)
        small = synthetic_store(folder / "small", 2048)
        result = {
            "batch": over_batches(store, settings, options.batches, rounds=options.rounds),
            "store": over_stores(folder, settings, options.stores, batch=4096, rounds=options.rounds),
            "threads": over_threads(small, settings, options.threads, batch=512, rounds=options.rounds),
            "ranks": over_ranks(folder, small, options.ranks, batch=240, steps=20),
        }
    for rows in result.values():
        show(rows)
    machine.write({**machine.describe(), "options": vars(options), **result}, options.out)


if __name__ == "__main__":
    main()
