"""Pre-training on the CPU against a plain implementation of the same (plain.py), side by side in one run.

    .venv/bin/python benchmarks/bench_pretrain.py --out benchmarks/results/pretrain-<machine>-<month>.json

Before anything is timed, both are given the same weights, crops and masks, and must return the same loss and gradient.
A step is: given crops and masks (plain) or visible patches (ours), to updated weights. The data path is: from files to
crops and masks, or visible patches, in one process and from the page cache. The loop is both, one after the other:
in training ours reads a step ahead in a thread, which is left out here because it is a second core.
Memory is the growth of the resident set at its peak (Linux's VmHWM), in a process of its own.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import machine
import plain
from myna import recipe
from myna.contrast import contrastive
from myna.device import pick_precision
from myna.mask import visible_count
from myna.model import MynaModel
from myna.run import Settings
from myna.step import Step
from myna.store import Store
from myna.view import VIEWS, Loader, Views

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stores import make_store, random_mels

CLIPS, CLIP_FRAMES = 1024, 313  # of the store and of the pickles: 10 s each
DATA_BATCH, LOSS_BATCH, LARGE_BATCH, LOSS_DIM = 512, 4096, 16_384, 128
LOOP_STEPS = 3


def compare(work: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Time pieces of work in turn and return the seconds of every round: neighbours in a round can be compared."""
    times: dict[str, list[float]] = {name: [] for name in work}

    def timed(name: str) -> None:
        begin = time.perf_counter()
        work[name]()
        times[name].append(time.perf_counter() - begin)

    machine.side_by_side({name: lambda name=name: timed(name) for name in work}, rounds=rounds)
    return {name: spent[1:] for name, spent in times.items()}  # the first was to warm up


class Bench:
    """Both ways of training, on the same clips and from the same weights."""

    def __init__(self, settings: Settings, store: Store, paths: list[Path], *, batch: int) -> None:
        self.settings, self.store, self.paths, self.batch = settings, store, paths, batch
        self.grids = settings.model.grids()
        self.visible = {k: visible_count(g.tokens, settings.view.mask_ratio) for k, g in self.grids.items()}
        self.loader = self.new_loader(batch)
        self.model = MynaModel(settings.model)
        self.plain = plain.PlainStep(self.model, temperature=settings.loss.temperature)
        self.adam = self._adam(self.model, fused=True)
        self.plain_adam = self._adam(self.plain.network)

    def _adam(self, model: MynaModel, **how: bool) -> torch.optim.Adam:
        train = self.settings.train
        return torch.optim.Adam(model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, **how)

    def new_loader(self, batch: int) -> Loader:
        return Loader(self.store, self.settings.view, self.grids, batch=batch, seed=0)

    def plain_masks(self, batch: int) -> dict[str, Tensor]:
        return {
            kind: plain.masks(VIEWS * batch, tokens=grid.tokens, visible=self.visible[kind])
            for kind, grid in self.grids.items()
        }

    def plain_crops(self, batch: int) -> DataLoader:
        crop_frames = max(grid.frames for grid in self.grids.values())
        clips = plain.PickledClips(self.paths, crop_frames=crop_frames)
        return DataLoader(clips, batch_size=batch, shuffle=True, drop_last=True)

    def same(self) -> tuple[tuple[Tensor, dict[str, Tensor]], dict[str, Views]]:
        """Return one batch in both forms: the crops and masks that ours draws, and its visible patches."""
        drawn, clips = self.loader.draw(0), self.loader.clips
        track = clips.track[self.loader.clip_numbers(0)]
        starts = (drawn.rows - clips.row[track]).T.tolist()  # frames from the clip's beginning: (batch, view)
        frames = max(grid.frames for grid in self.grids.values())
        mels = [torch.from_numpy(self.store.mel(number)).T for number in track.tolist()]
        crops = [torch.stack([mel[:, s : s + frames] for s in both]) for mel, both in zip(mels, starts, strict=True)]
        tokens = {kind: drawn.tokens[kind].flatten(0, 1) for kind in self.grids}
        return (torch.stack(crops), tokens), self.loader(0)

    def ours(self, precision: str) -> Callable[[dict[str, Views]], Tensor]:
        """Return what the trainer does with a batch: gradient, its norm, update."""
        step = Step(self.model, self.settings.loss, precision=precision)
        how = "products" if precision == "bf16" else "sdpa"  # the trainer's rule for CPUs

        def run(views: dict[str, Views]) -> Tensor:
            self.model.encoder.attend_by(how)
            self.adam.zero_grad(set_to_none=True)
            value = step(views)["loss"]
            torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
            self.adam.step()
            return value

        return run

    def theirs(self, crops: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        self.plain_adam.zero_grad()
        value = self.plain(crops, tokens)
        self.plain_adam.step()
        return value


def check(bench: Bench) -> dict[str, float]:
    """Hold that both ways compute the same loss and gradient."""
    given, views = bench.same()
    theirs = bench.plain(*given)
    ours = Step(bench.model, bench.settings.loss)(views)["loss"]
    pairs = list(zip(bench.model.parameters(), bench.plain.network.parameters(), strict=True))
    size = torch.stack([p.grad.norm() for _, p in pairs]).norm().item()
    apart = torch.stack([(a.grad - b.grad).norm() for a, b in pairs]).norm().item() / size
    found = {"plain": theirs.item(), "ours": ours.item(), "gradients_apart": apart}
    assert abs(found["plain"] - found["ours"]) < 1e-4, f"the two ways do not compute the same loss: {found}"
    assert apart < 1e-4, f"the two ways do not compute the same gradient: {found}"
    return found


def steps(bench: Bench, *, rounds: int) -> dict[str, list[float]]:
    given, views = bench.same()
    fp32, bf16 = bench.ours("fp32"), bench.ours("bf16")
    return compare(
        {"plain": lambda: bench.theirs(*given), "fp32": lambda: fp32(views), "bf16": lambda: bf16(views)}, rounds=rounds
    )


def products(bench: Bench, *, rounds: int) -> dict[str, list[float]]:
    """Return seconds an operation of the feed-forward's product, forward, at the step's number of rows."""
    config, rows = bench.settings.model, VIEWS * bench.batch * next(iter(bench.visible.values()))
    x, weight = torch.randn(rows, config.dim), torch.randn(config.mlp_dim, config.dim)
    kinds = {"fp32": (x, weight), "bf16": (x.bfloat16(), weight.bfloat16())}
    seconds = compare(
        {
            name: lambda pair=pair: [torch.nn.functional.linear(*pair) for _ in range(10)]
            for name, pair in kinds.items()
        },
        rounds=rounds,
    )
    operations = 20 * rows * config.dim * config.mlp_dim
    return {name: [s / operations for s in spent] for name, spent in seconds.items()}


def loss_work(name: str, batch: int) -> Callable[[], None]:
    """Return a function that takes the loss of random projections, forward and backward."""
    torch.manual_seed(0)
    first, second = (torch.randn(batch, LOSS_DIM, requires_grad=True) for _ in range(2))

    def run() -> None:
        first.grad = second.grad = None
        (contrastive(first, second)[0] if name == "ours" else plain.loss(first, second)).backward()

    return run


def loss_peak(name: str, batch: int, threads: int) -> tuple[float, int]:
    """Return seconds and bytes that one loss takes. For a process of its own, on Linux."""
    torch.set_num_threads(threads)
    loss_work(name, 64)()  # what is loaded once is no part of it
    run = loss_work(name, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
    before, begin = _peak_bytes(), time.perf_counter()
    run()
    return time.perf_counter() - begin, _peak_bytes() - before


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def losses(*, threads: int, rounds: int) -> dict[str, Any]:
    seconds = compare({name: loss_work(name, LOSS_BATCH) for name in ("plain", "ours")}, rounds=rounds)
    peak, large_s = {}, 0.0
    for name, batch in (("plain", LOSS_BATCH), ("ours", LOSS_BATCH), ("ours", LARGE_BATCH)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            large_s, peak[f"{name} {batch}"] = pool.submit(loss_peak, name, batch, threads).result()
    return {"seconds": seconds, "peak_bytes": peak, "large_seconds": large_s}


def data_path(bench: Bench, *, rounds: int) -> dict[str, list[float]]:
    """Return seconds a clip, each over one pass of all clips."""
    crops, loader = bench.plain_crops(DATA_BATCH), bench.new_loader(DATA_BATCH)
    step = count()

    def theirs() -> None:
        for _ in crops:
            bench.plain_masks(DATA_BATCH)

    def ours() -> None:
        for _ in range(loader.steps_per_epoch):
            loader(next(step))

    def without_masks() -> None:
        for _ in crops:
            pass

    seconds = compare({"plain": theirs, "plain, no masks": without_masks, "ours": ours}, rounds=rounds)
    clips = loader.steps_per_epoch * DATA_BATCH
    return {name: [s / clips for s in spent] for name, spent in seconds.items()}


def loop(bench: Bench, precision: str, *, rounds: int) -> dict[str, list[float]]:
    """Return seconds of a whole step: data, gradient, update."""
    crops, step, ours = bench.plain_crops(bench.batch), count(), bench.ours(precision)

    def plain_loop() -> None:
        for batch in islice(crops, LOOP_STEPS):
            bench.theirs(batch, bench.plain_masks(bench.batch))

    def our_loop() -> None:
        for _ in range(LOOP_STEPS):
            ours(bench.loader(next(step)))

    seconds = compare({"plain": plain_loop, "ours": our_loop}, rounds=rounds)
    return {name: [s / LOOP_STEPS for s in spent] for name, spent in seconds.items()}


def rows(result: dict[str, Any], *, batch: int, precision: str) -> list[tuple[str, ...]]:
    """Lay the numbers out beside the goals: medians, and the ratio's median and range over the rounds."""
    step, loss, data, whole, product = (result[name] for name in ("step", "loss", "data", "loop", "products"))
    needed = result["flops_per_clip"] * batch
    megabytes = {name: size / 1e6 for name, size in loss["peak_bytes"].items()}
    small, ours, large = (megabytes[n] for n in (f"plain {LOSS_BATCH}", f"ours {LOSS_BATCH}", f"ours {LARGE_BATCH}"))
    return [
        ("what", "plain", "ours", "plain / ours", "range", "goal"),
        _row(f"step of {batch}, fp32: s", step["plain"], step["fp32"], goal="1.05"),
        _row(f"step of {batch}, bf16 (plain: fp32): s", step["plain"], step["bf16"], goal="3.5"),
        _row(f"whole loop, {precision}: s a step", whole["plain"], whole["ours"]),
        _row(f"loss at {LOSS_BATCH}: s", loss["seconds"]["plain"], loss["seconds"]["ours"], goal="3.5"),
        (f"loss at {LOSS_BATCH}: peak MB", f"{small:.0f}", f"{ours:.0f}", f"{small / ours:.1f}", "", "30"),
        (f"loss at {LARGE_BATCH}: s", "", f"{loss['large_seconds']:.1f}", "", "", ""),
        (f"loss at {LARGE_BATCH}: peak MB", "", f"{large:.0f}", "", "", "191 MB"),
        _row("data path: clips/s", data["plain"], data["ours"], work=1, goal="30"),
        _row("data path, plain draws no masks: clips/s", data["plain, no masks"], data["ours"], work=1),
        _row("products in the step, fp32: GFLOP/s", step["plain"], step["fp32"], work=needed / 1e9),
        _row("products in the step, bf16: GFLOP/s", step["plain"], step["bf16"], work=needed / 1e9),
        _row("products alone, fp32 | bf16: GFLOP/s", product["fp32"], product["bf16"], work=1e-9),
    ]


def _row(what: str, theirs: list[float], ours: list[float], *, work: float = 0, goal: str = "") -> tuple[str, ...]:
    """Compare seconds; they are told as they are, or as `work` a second."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    told = [work / median(spent) if work else median(spent) for spent in (theirs, ours)]
    numbers = [f"{number:,.0f}" if number >= 10 else f"{number:.3f}" for number in told]
    return (what, *numbers, f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}", goal)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--recipe", default="base")
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--out")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    settings = recipe.get(options.recipe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "store", random_mels(CLIPS, CLIP_FRAMES))
        bench = Bench(settings, store, plain.write_pickles(store, folder / "pickles"), batch=options.batch)
        precision = pick_precision("auto", torch.device("cpu"))
        clip_flops = sum(settings.model.flops(kind, tokens=kept) for kind, kept in bench.visible.items())
        result = {
            "same": check(bench),
            "flops_per_clip": 3 * VIEWS * clip_flops,
            "products": products(bench, rounds=options.rounds),
            "step": steps(bench, rounds=options.rounds),
            "loss": losses(threads=options.threads, rounds=options.rounds),
            "data": data_path(bench, rounds=options.rounds),
            "loop": loop(bench, precision, rounds=max(1, options.rounds // 2)),
        }
    print("same weights, crops and masks:", result["same"])
    print(machine.table(rows(result, batch=options.batch, precision=precision)))
    machine.write({**machine.describe(), "options": vars(options), "precision": precision, **result}, options.out)


if __name__ == "__main__":
    main()
