"""The grid of 216 probes, all at once against one after another, on the sizes of GTZAN and MagnaTagATune.

    .venv/bin/python benchmarks/bench_probe.py --out benchmarks/results/probe-<machine>-<month>.json

Embeddings are synthetic: a linear teacher and noise. "One after another" is the usual script: a DataLoader over the
items, nn.Dropout and nn.Linear, autograd, Adam, and every 8 steps all of valid through a second DataLoader, scored by
scikit-learn. "Lean" is the same without DataLoaders and with our metrics: what is left then is the matrix products
and PyTorch's own overhead, the least that a sequential form can cost.

Whole searches take thousands of steps a configuration, so a fixed number of steps is timed, kind by kind (hidden,
batch), with all 54 of ours in training; what our search does before the first and after the last step is timed apart
and taken off. A step's cost depends on the kind alone, so of the others `--share` configurations a kind are trained,
half of them standardised, and their time is scaled up to 54: an extrapolation over configurations. `--whole` also
runs our search on GTZAN's size to its end, and scales the others' time a step by the steps that it took.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import machine
from myna.grid import GRID, ProbeConfig
from myna.metric import Primary
from myna.probe import Scaler, search
from myna.problem import Problem, Split

EVERY = 8


def gtzan() -> Problem:
    """930 vectors of 384 values in 10 classes: 443, 197, 290."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 384))

    def part(items: int) -> Split:
        y = rng.integers(0, 10, items)
        return Split((centres[y] + 6 * rng.standard_normal((items, 384))).astype(np.float32), y)

    return Problem("gtzan", "single", tuple("abcdefghij"), part(443), part(197), part(290))


def magnatagatune() -> Problem:
    """25,860 vectors of 768 values with 50 tags, each on 5 % of them: 18706, 1825, 5329."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((768, 50)) / 768**0.5

    def part(items: int) -> Split:
        x = rng.standard_normal((items, 768)).astype(np.float32)
        score = x @ teacher + 0.7 * rng.standard_normal((items, 50))
        return Split(x, (score > 1.645 * 1.49**0.5).astype(np.float32))

    return Problem("magnatagatune", "multi", tuple(map(str, range(50))), part(18706), part(1825), part(5329))


def network(config: ProbeConfig, dim: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(config.dropout)]
    for width in config.hidden:
        layers += [nn.Linear(dim, width), nn.ReLU(), nn.Dropout(config.dropout)]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, outputs))


class Plain:
    """One configuration after another; `lean` leaves out the DataLoader and scikit-learn."""

    def __init__(self, problem: Problem, device: str, *, lean: bool) -> None:
        self.answer, self.outputs, self.device, self.lean = problem.answer, len(problem.outputs), device, lean
        scaler = Scaler.fit(problem.train.x)
        self.x = {s: [torch.from_numpy(f(p.x)) for p in (problem.train, problem.valid)] for s, f in
                  ((False, np.asarray), (True, scaler))}  # fmt: skip
        self.y = [torch.from_numpy(p.y) for p in (problem.train, problem.valid)]
        self.primary = Primary(self.answer, self.y[1].to(device))

    @torch.no_grad()
    def score(self, model: nn.Module, valid: torch.Tensor, batch: int) -> float:
        if self.lean:
            return float(self.primary(model(valid)[None])[0])
        logits = torch.cat([model(rows.to(self.device)) for (rows,) in DataLoader(TensorDataset(valid), batch)])
        if self.answer == "single":
            return float(accuracy_score(self.y[1], logits.argmax(dim=1).cpu()))
        found = logits.sigmoid().cpu()
        average_precision_score(self.y[1], found, average="macro")
        return float(roc_auc_score(self.y[1], found, average="macro"))

    def batches(self, x: torch.Tensor, config: ProbeConfig, steps: int):
        if not self.lean:
            loader = DataLoader(TensorDataset(x, self.y[0]), batch_size=config.batch, shuffle=True, drop_last=True)
            while True:
                for seen, wanted in loader:
                    yield seen.to(self.device), wanted.to(self.device)
        x, y = x.to(self.device), self.y[0].to(self.device)
        for _ in range(steps):
            index = torch.randperm(len(x), device=self.device)[: config.batch]
            yield x[index], y[index]

    def train(self, config: ProbeConfig, steps: int) -> None:
        x, valid = self.x[config.standardise]
        valid = valid.to(self.device) if self.lean else valid
        model = network(config, x.shape[1], self.outputs).to(self.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.l2)
        loss = nn.CrossEntropyLoss() if self.answer == "single" else nn.BCEWithLogitsLoss()
        best = -1.0
        for step, (seen, wanted) in zip(range(steps), self.batches(x, config, steps), strict=False):
            if step % EVERY == 0:
                best = max(best, self.score(model.eval(), valid, config.batch))
                model.train()
            optimizer.zero_grad()
            loss(model(seen), wanted).backward()
            optimizer.step()


def kinds() -> dict[tuple, list[ProbeConfig]]:
    """Return the configurations by what the cost of a step depends on."""
    found: dict[tuple, list[ProbeConfig]] = {}
    for config in GRID:
        found.setdefault((config.hidden, config.batch), []).append(config)
    return found


def compare(problem: Problem, steps: int, options: argparse.Namespace) -> dict:
    """Time the three ways, in turn; return seconds for the 216 configurations, kind by kind, and ratios."""
    plains = {name: Plain(problem, options.device, lean=name == "lean") for name in ("one after another", "lean")}
    seconds: dict[str, dict[str, float]] = {}
    for (hidden, batch), members in kinds().items():
        few = members[:: len(members) // options.share][: options.share]

        def ours(last: int, grid: list[ProbeConfig] = members) -> object:
            return search(problem, grid=grid, device=options.device, max_steps=last, draws=1)

        def theirs(name: str, grid: list[ProbeConfig] = few) -> Callable[[], None]:
            return lambda: [plains[name].train(config, steps) for config in grid]

        work = {"all at once": lambda: ours(steps), "apart": lambda: ours(0)}
        took = machine.side_by_side(work | {name: theirs(name) for name in plains}, rounds=options.rounds)
        apart = took.pop("apart")
        took = {name: s - apart if name == "all at once" else s * len(members) / len(few) for name, s in took.items()}
        seconds[f"{'mlp' if hidden else 'linear'}, batch {batch}"] = took
    seconds["216"] = {name: sum(each[name] for each in seconds.values()) for name in took}
    rows = [(f"{problem.name}, {steps} steps", *took, "(seconds)", "against one after another", "against lean")]
    for kind, each in seconds.items():
        ratios = [f"{each[name] / each['all at once']:.1f}x" for name in plains]
        rows.append((kind, *(f"{s:.2f}" for s in each.values()), "", *ratios))
    print(machine.table(rows), flush=True)
    return {
        "steps": steps,
        "seconds": seconds,
        "extrapolated": f"one after another and lean: from {options.share} to 54 configurations of each kind",
        "ratio": {name: seconds["216"][name] / seconds["216"]["all at once"] for name in plains},
    }


def whole(problem: Problem, steps: int, options: argparse.Namespace) -> dict:
    """Run our search to its end, and scale the plain way's time by the steps taken."""
    begin = time.perf_counter()
    found = search(problem, device=options.device)
    ours = time.perf_counter() - begin
    plain, per_step = Plain(problem, options.device, lean=False), {}
    for kind, members in kinds().items():
        begin = time.perf_counter()
        plain.train(members[0], steps)
        per_step[kind] = (time.perf_counter() - begin) / steps
    theirs = sum(
        per_step[config.hidden, config.batch] * taken for config, taken in zip(GRID, found.stop_steps, strict=True)
    )
    print(f"whole search: {ours:.0f} s, {sum(found.stop_steps)} steps; one after another {theirs:.0f} s (extrapolated)")
    return {
        "seconds": ours,
        "steps_of_all": sum(found.stop_steps),
        "stop_steps": list(found.stop_steps),
        "one_after_another_s_extrapolated": theirs,
        "ratio": theirs / ours,
        "test": found.test,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--share", type=int, default=4, help="configurations of each kind, of 54")
    arguments.add_argument("--gtzan-steps", type=int, default=40)
    arguments.add_argument("--magnatagatune-steps", type=int, default=16)
    arguments.add_argument("--whole", action="store_true", help="also run our search on GTZAN's size to its end")
    arguments.add_argument("--out")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    result = {**machine.describe(options.device), "options": vars(options)}
    result["gtzan"] = compare(gtzan(), options.gtzan_steps, options)
    machine.write(result, options.out)
    result["magnatagatune"] = compare(magnatagatune(), options.magnatagatune_steps, options)
    machine.write(result, options.out)
    if options.whole:
        result["gtzan_whole"] = whole(gtzan(), options.gtzan_steps, options)
        machine.write(result, options.out)


if __name__ == "__main__":
    main()
