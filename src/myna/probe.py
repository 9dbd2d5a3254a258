"""Embeddings and labels become a score: probes trained on train, chosen on valid, and one of them tried on test.

`search` follows a protocol by name; they are never mixed:

- "jukemir" (the default): one vector for each item, and JukeMIR's rules to the letter. The 216 configurations of
  `grid.GRID`; standardisation fitted on train alone; dropout on the input of linear probes too; Adam, constant rate,
  coupled L2; batches drawn anew each step; valid scored every 8 steps from step 0 on; an end after 256 scores without
  a strict improvement, and the best weights back; the same seed for each configuration; the configuration with the
  best valid score, the first of equals, is scored on test, once. Songs cut into clips (key) are trained by clip and
  answered by song, by the strategy that is best on valid.
- "windows": the same rules, but each window is a training example with its item's label, and an item's answer is that
  of the mean of its windows' outputs. So do the scripts that came with Myna, which choose on test; this does not.
- "marble": see `schedule`.

A class that train lacks is allowed, as in JukeMIR: no item of it will be answered rightly.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped
from scipy import stats
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from myna import bootstrap
from myna.cohort import Predict, Trained, TrainingRows, train
from myna.errors import ProbeError
from myna.grid import GRID, ProbeConfig, Protocol
from myna.metric import STRATEGIES, Primary, answers_of_songs, item_means, measure
from myna.problem import Problem, Split
from myna.schedule import schedule, train_marble
from myna.task.base import PARTS, Answer

SMALL = 2_000_000  # numbers in the training vectors; GTZAN has 170,000, MagnaTagATune 7 million and more


@dataclass(frozen=True)
class Scaler:
    """Standardisation fitted on train: x becomes (x - mean) / scale; a value that never varies keeps scale 1."""

    mean: Float64[np.ndarray, " dim"]
    scale: Float64[np.ndarray, " dim"]

    @classmethod
    def fit(cls, x: Float32[np.ndarray, "row dim"]) -> "Scaler":
        """Return mean and population standard deviation, summed in float64, by scikit-learn."""
        fitted = StandardScaler().fit(x.astype(np.float64))
        return cls(fitted.mean_, fitted.scale_)

    def __call__(self, x: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
        return ((x - self.mean) / self.scale).astype(np.float32)


@dataclass(frozen=True)
class Probe:
    """A trained probe: weights (out, in) and biases, layer by layer, and the standardisation that it wants."""

    answer: Answer
    outputs: tuple[str, ...]
    config: ProbeConfig
    parameters: tuple[Float32[Tensor, "..."], ...]
    scaler: Scaler | None

    def logits(self, x: Float32[np.ndarray, "row dim"]) -> Float32[Tensor, "row output"]:
        """Return the outputs of the last layer."""
        out = torch.from_numpy(self.scaler(x) if self.scaler else np.ascontiguousarray(x, np.float32))
        for layer in range(0, len(self.parameters), 2):
            out = torch.nn.functional.linear(out.relu() if layer else out, *self.parameters[layer : layer + 2])
        return out

    def predict(self, x: Float32[np.ndarray, "row dim"]) -> Shaped[np.ndarray, "row *output"]:
        """Return a class (single, key), probabilities (multi), or values (regression) for each row."""
        return _answers(self.answer, self.logits(x))


def _answers(answer: Answer, logits: Float32[Tensor, "item output"]) -> Shaped[np.ndarray, "item *output"]:
    if answer == "multi":
        return logits.sigmoid().numpy()
    return logits.numpy() if answer == "regression" else logits.argmax(dim=-1).numpy()


@dataclass(frozen=True)
class Outcome:
    """What a search found: the chosen probe, its scores, and how every configuration fared on valid.

    `intervals` holds the middle 95 % of each test metric over resampled test groups. Steps are epochs in MARBLE's
    protocol. Of several representations, `representation` is the chosen one and `alternatives` holds all.
    """

    problem: str
    protocol: Protocol
    seed: int
    index: int
    probe: Probe
    strategy: str | None
    valid: dict[str, float]
    test: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    grid: tuple[ProbeConfig, ...]
    valid_scores: tuple[float, ...]
    best_steps: tuple[int, ...]
    stop_steps: tuple[int, ...]
    representation: str | None = None
    alternatives: dict[str, "Outcome"] = field(default_factory=dict)

    @property
    def config(self) -> ProbeConfig:
        """Return the chosen configuration."""
        return self.grid[self.index]

    @property
    def primary(self) -> str:
        """Return the name of the metric that chose."""
        return next(iter(self.valid))

    def record(self) -> dict[str, Any]:
        """Return everything but the weights, fit for JSON; an undefined interval is None."""
        told = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.name not in ("probe", "grid", "intervals", "alternatives")
        }
        told["config"] = self.config.model_dump(mode="json")
        told["grid"] = [config.model_dump(mode="json") for config in self.grid]
        told["intervals"] = {
            name: list(ends) if np.isfinite(ends).all() else None for name, ends in self.intervals.items()
        }
        told["alternatives"] = {name: outcome.record() for name, outcome in self.alternatives.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def search(
    problem: Problem | Mapping[str, Problem],
    *,
    protocol: Protocol = "jukemir",
    grid: Sequence[ProbeConfig] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    draws: int = 1000,
    max_steps: int | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Outcome:
    """Train every configuration, choose on valid, score the chosen one on test.

    Of several representations of the same items (name → problem), each is searched and reported, and the one with the
    best valid score, the first of equals, is chosen. `draws` is how often the test groups are resampled for the
    intervals. `on_progress` is told the step, how many configurations have stopped, and of how many; `max_steps` ends
    the training there (for timing; a score so found is not the protocol's).
    """
    settings = {
        "protocol": protocol,
        "grid": grid,
        "seed": seed,
        "device": device,
        "draws": draws,
        "max_steps": max_steps,
        "on_progress": on_progress,
    }
    if isinstance(problem, Mapping):
        _check_same_labels(problem)
        outcomes = {name: search(one, **settings) for name, one in problem.items()}
        best = max(outcomes, key=lambda name: outcomes[name].valid_scores[outcomes[name].index])
        return dataclasses.replace(outcomes[best], representation=best, alternatives=outcomes)
    if protocol == "jukemir" and any(getattr(problem, part).item is not None for part in PARTS):
        raise ProbeError('Windows were given, and the protocol "jukemir" takes one vector an item: use Split.pooled.')
    if protocol == "marble":
        if grid is not None:
            raise ProbeError('The protocol "marble" trains one probe of its own: leave the grid out.')
        grid = (schedule(problem.name).config,)
    grid = tuple(GRID if grid is None else grid)
    if not grid:
        raise ProbeError("The grid is empty: give one configuration at least.")
    with _threads(problem):
        return _Search(problem, protocol, grid, seed, torch.device(device)).run(draws, max_steps, on_progress)


@contextmanager
def _threads(problem: Problem) -> Iterator[None]:
    """Take one thread for a small problem: waking a second costs more than the product that it would share."""
    before = torch.get_num_threads()
    if problem.train.x.size < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_same_labels(problems: Mapping[str, Problem]) -> None:
    if not problems:
        raise ProbeError("No representation was given: give one at least.")
    first, *others = problems.values()
    for other in others:
        for part in PARTS:
            if not np.array_equal(getattr(first, part).y, getattr(other, part).y):
                raise ProbeError(
                    f"The representations differ in their {part} labels: give the same items in one order."
                )


@dataclass(frozen=True)
class _Search:
    """One problem under one protocol: arrays on the device, and what happens to logits."""

    problem: Problem
    protocol: Protocol
    grid: tuple[ProbeConfig, ...]
    seed: int
    device: torch.device

    def run(self, draws: int, max_steps: int | None, on_progress: Callable[[int, int, int], None] | None) -> Outcome:
        rows = self._rows()
        if self.protocol == "marble":
            trained = [train_marble(rows, schedule(self.problem.name), self._evaluate, seed=self.seed)]
        else:
            trained = train(
                self.grid, rows, self._evaluate, seed=self.seed, max_steps=max_steps, on_progress=on_progress
            )
        scores = [each.score for each in trained]
        index = int(np.argmax(scores))  # the first of equals
        probe = self._probe(trained[index], self.grid[index])
        strategy = self._strategy(probe)
        valid, *_ = self._score(probe, self.problem.valid, strategy)
        test, truth, found, group = self._score(probe, self.problem.test, strategy)
        return Outcome(
            problem=self.problem.name,
            protocol=self.protocol,
            seed=self.seed,
            index=index,
            probe=probe,
            strategy=None if strategy is None else STRATEGIES[strategy],
            valid=valid,
            test=test,
            intervals=bootstrap.intervals(
                self.problem.answer, self.problem.outputs, truth, found, group, draws=draws, seed=self.seed
            ),
            grid=self.grid,
            valid_scores=tuple(scores),
            best_steps=tuple(each.best_step for each in trained),
            stop_steps=tuple(each.stop_step for each in trained),
        )

    @functools.cached_property
    def scaler(self) -> Scaler:
        return Scaler.fit(self.problem.train.x)

    def _inputs(self, x: Float32[np.ndarray, "row dim"]) -> dict[bool, Float32[Tensor, "row dim"]]:
        """Return rows as they are and standardised, whichever the grid asks for."""
        forms = {config.standardise for config in self.grid}
        return {
            form: torch.from_numpy(self.scaler(x) if form else np.ascontiguousarray(x, np.float32)).to(self.device)
            for form in sorted(forms)
        }

    def _rows(self) -> TrainingRows:
        split, answer = self.problem.train, self.problem.answer
        y = torch.from_numpy(split.y if split.item is None else split.y[split.item])
        if answer in ("single", "key"):
            y = torch.nn.functional.one_hot(y.long(), len(self.problem.outputs))
        return TrainingRows(self._inputs(split.x), y.float().to(self.device), answer)

    @functools.cached_property
    def _valid(self) -> tuple[dict[bool, Tensor], Primary]:
        split, answer = self.problem.valid, self.problem.answer
        song = torch.from_numpy(split.songs).to(self.device) if answer == "key" else None
        return self._inputs(split.x), Primary(answer, torch.from_numpy(split.y).to(self.device), song)

    def _evaluate(self, predict: Predict, configs: Sequence[ProbeConfig]) -> Float64[Tensor, " model"]:
        """Score models on valid."""
        x, primary = self._valid
        logits = predict(x)
        wild = (~logits.sum(dim=(1, 2)).isfinite()).nonzero()[:, 0].tolist()  # one pass: a sum keeps what is not finite
        if wild:
            raise ProbeError(
                f"A probe's outputs became NaN or infinite ({configs[wild[0]]}): scale the embeddings, or leave this "
                "configuration out of the grid."
            )
        logits = self._by_item(logits, self.problem.valid)
        if self.problem.answer == "key" and self.protocol == "marble":
            return primary.by_strategy(logits)[STRATEGIES.index("gmean")].cpu()
        return primary(logits).cpu()

    def _by_item(
        self, logits: Float32[Tensor, "model row output"], split: Split
    ) -> Float32[Tensor, "model item output"]:
        """Join the windows of each item: the mean of their logits (MARBLE's of one class: of their probabilities)."""
        if split.item is None:
            return logits
        if self.protocol == "marble" and self.problem.answer == "single":
            logits = logits.softmax(dim=-1)
        return item_means(logits, torch.from_numpy(split.item).to(logits.device), len(split))

    def _probe(self, trained: Trained, config: ProbeConfig) -> Probe:
        parameters = tuple(parameter.cpu() for parameter in trained.parameters)
        scaler = self.scaler if config.standardise else None
        return Probe(self.problem.answer, self.problem.outputs, config, parameters, scaler)

    def _logits(self, probe: Probe, split: Split) -> Float32[Tensor, "item output"]:
        return self._by_item(probe.logits(split.x)[None], split)[0]

    def _strategy(self, probe: Probe) -> int | None:
        """Return which way of joining a song's clips is best on valid, the first of equals (key only)."""
        if self.problem.answer != "key":
            return None
        if self.protocol == "marble":
            return STRATEGIES.index("gmean")
        valid = self.problem.valid
        primary = Primary("key", torch.from_numpy(valid.y), torch.from_numpy(valid.songs))
        return int(primary.by_strategy(self._logits(probe, valid)[None])[:, 0].argmax())

    def _score(
        self, probe: Probe, split: Split, strategy: int | None
    ) -> tuple[dict[str, float], np.ndarray, np.ndarray, np.ndarray]:
        """Return the metrics, and what they were formed from: truth, answers, groups."""
        logits, truth = self._logits(probe, split), split.y
        group = np.arange(len(split)) if split.group is None else split.group
        if strategy is None:
            found = _answers(self.problem.answer, logits)
        else:
            songs, first = np.unique(split.songs, return_index=True)
            found = answers_of_songs(logits[None], torch.from_numpy(split.songs), len(songs))[strategy, 0].numpy()
            truth, group = truth[first], group[first]
        return measure(self.problem.answer, self.problem.outputs, truth, found), truth, found, group


@dataclass(frozen=True)
class Spread:
    """A metric over probe seeds: the mean, and Student's 95 % interval for the mean of all seeds."""

    mean: float
    low: float
    high: float


def search_seeds(
    problem: Problem | Mapping[str, Problem], *, seeds: int | Sequence[int], **settings: Any
) -> tuple[list[Outcome], dict[str, Spread]]:
    """Run `search` once for each seed, the choice done anew, and sum up each test metric.

    `seeds` is how many (0, 1, ...) or which. With one seed the interval is NaN.
    """
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    if not len(chosen):
        raise ProbeError("No probe seed was given: give one at least.")
    outcomes = [search(problem, seed=seed, **settings) for seed in chosen]
    return outcomes, {name: spread([o.test[name] for o in outcomes]) for name in outcomes[0].test}


def spread(values: Sequence[float]) -> Spread:
    """Return mean and Student's 95 % interval of the mean."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Spread(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Spread(mean, mean - half, mean + half)
