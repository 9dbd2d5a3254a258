"""What each loss takes, forward and backward, beside the paper's form; side by side in one run.

    .venv/bin/python benchmarks/bench_loss.py --out benchmarks/results/loss-<machine>-<month>.json

Each gets the same random projections, as float32. SogCLR looks its averages up among those of a million clips, and
writes them back. The goal is to cost no more than 1.15 times the paper's form.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

import machine
from myna.loss import ContrastiveLoss, LossConfig

CLIPS, DIM = 1_000_000, 128
LOSSES = {
    "paper": LossConfig(),
    "ntxent": LossConfig(loss="ntxent"),
    "learned temperature": LossConfig(learn_temperature=True),
    "sogclr": LossConfig(loss="sogclr"),
    "sogclr, individual": LossConfig(loss="sogclr", sogclr_individual=True),
}


def work(config: LossConfig, batch: int, device: torch.device) -> Callable[[], float]:
    """Return a function that takes one step of a loss and returns its seconds."""
    loss = ContrastiveLoss(config, ["square"], clips=CLIPS).to(device)
    torch.manual_seed(0)
    views = [torch.randn(batch, DIM, device=device, requires_grad=True) for _ in range(2)]
    clips = torch.randperm(CLIPS)[:batch].to(device)

    def run() -> float:
        begin = time.perf_counter()
        loss(*views, kind="square", clips=clips)[0].backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--batch", type=int, default=4096)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--out")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    runs = {name: work(config, options.batch, torch.device(options.device)) for name, config in LOSSES.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        for name, run in runs.items():
            spent = run()
            if number:  # the first is to warm up
                seconds[name].append(spent)
    rows = [("loss", "seconds", "of the paper's", "range over rounds")]
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, seconds["paper"], strict=True)]
        range_ = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append((name, f"{median(spent):.4f}", f"{median(ratios):.2f}", range_))
    print(machine.table(rows))
    result = {**machine.describe(options.device), "options": vars(options), "seconds": seconds}
    machine.write(result, options.out)


if __name__ == "__main__":
    main()
