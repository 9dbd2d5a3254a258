"""Many probes of one shape, trained together: what they share is computed once.

Every configuration starts from the same seed, so all draw the same rows, the same initial weights for a shape, and
the same random bits for dropout, of which each takes the share that its rate says. Configurations that differ in
learning rate and L2 alone therefore see the same input, and their first layers are one matrix product. Weights lie
as (model, out, in) and activations as (model, unit, batch), so no product needs a copy. Models are walked through in
tiles that stay in the cache for all steps between two evaluations.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor
from torch.optim.adam import adam

from myna import noise
from myna.grid import ProbeConfig
from myna.task.base import Answer

# the training rule: an evaluation every 8 steps, an end after 256 of them without a strict improvement
EVERY, PATIENCE = 8, 256
TILE_BYTES = 8 << 20  # of weights, gradients and moments: a share of the last cache
_ROWS, _WEIGHTS, _BIASES, _DROPOUT = range(4)  # the streams of random numbers


Inputs = Mapping[bool, Float32[Tensor, "row dim"]]  # rows as they are (False) and standardised (True)
Predict = Callable[[Inputs], Float32[Tensor, "model row output"]]
Evaluate = Callable[[Predict, Sequence[ProbeConfig]], Float64[Tensor, " model"]]


@dataclass(frozen=True)
class TrainingRows:
    """What is trained on: each row as it is and standardised (only what is asked for), and its target."""

    inputs: Inputs
    targets: Float32[Tensor, "row output"]
    answer: Answer

    def __len__(self) -> int:
        return len(self.targets)


@dataclass
class Block:
    """What is drawn for the `EVERY` steps from `first` on, shared by all models; smaller batches take a prefix."""

    rows: TrainingRows
    seed: int
    first: int
    batch: int
    index: Int64[Tensor, "step batch"] = field(init=False)
    targets: Float32[Tensor, "step output batch"] = field(init=False)

    def __post_init__(self) -> None:
        draws = self._bits_of((_ROWS,), torch.arange(len(self.rows), device=self.rows.targets.device))
        # the rows with the smallest of N random numbers: distinct, and the first 64 of 256 are a draw of 64
        self.index = draws.topk(self.batch, dim=1, largest=False, sorted=True).indices
        self.targets = self.rows.targets[self.index].transpose(1, 2).contiguous()
        self._numbers: dict[tuple[int, int, int], Tensor] = {}
        self._masks: dict[tuple[int, int, float], Tensor] = {}
        self._inputs: dict[tuple[bool, float], Tensor] = {}

    def _bits_of(self, stream: tuple[int, ...], place: Int64[Tensor, "*place"]) -> Int64[Tensor, "step *place"]:
        """Return 64 random bits for every step and place (below 2**44)."""
        steps = torch.arange(self.first, self.first + EVERY, device=place.device) << 44
        return noise.bits(noise.key(self.seed, *stream), steps.view(-1, *(1 for _ in place.shape)) + place)

    def _factors(self, layer: int, lines: int, places: int, rate: float) -> Float32[Tensor, "step line place"]:
        """Return dropout's factors in front of a layer: 0, or 1 / (1 - rate)."""
        kind, dropped, factor = quantum(rate)
        each = 8 // kind.itemsize  # how many numbers 64 bits are cut into
        if (layer, lines, each) not in self._numbers:
            device = self.rows.targets.device
            words = torch.arange(-(-places // each), device=device)
            where = (torch.arange(lines, device=device) << 22)[:, None] + words
            self._numbers[layer, lines, each] = self._bits_of((_DROPOUT, layer, each), where).view(kind)[..., :places]
        kept = self._numbers[layer, lines, each] >= torch.iinfo(kind).min + dropped
        return kept.to(torch.float32).mul_(factor)

    def inputs(self, standardise: bool, rate: float) -> Float32[Tensor, "step batch dim"]:
        """Return the drawn rows after the dropout of the input."""
        if (standardise, rate) not in self._inputs:
            drawn = self.rows.inputs[standardise][self.index]
            if rate:
                drawn *= self._mask_of(0, self.batch, drawn.shape[-1], rate)
            self._inputs[standardise, rate] = drawn
        return self._inputs[standardise, rate]

    def mask(self, layer: int, units: int, rate: float) -> Float32[Tensor, "step unit batch"]:
        """Return the factors of the dropout after a hidden layer, in front of `layer`."""
        return self._mask_of(layer, units, self.batch, rate)

    def _mask_of(self, layer: int, lines: int, places: int, rate: float) -> Float32[Tensor, "step line place"]:
        if (layer, lines, rate) not in self._masks:
            self._masks[layer, lines, rate] = self._factors(layer, lines, places, rate)
        return self._masks[layer, lines, rate]


def quantum(rate: float) -> tuple[torch.dtype, int, float]:
    """Return the small numbers that a dropout rate takes, how many of their levels drop, and the factor of the rest.

    A byte is exact for the rates of the grid; any other rate is rounded to 1 / 65536.
    """
    levels, kind = (256, torch.uint8) if (rate * 256).is_integer() else (65536, torch.int16)
    dropped = round(rate * levels)
    return kind, dropped, levels / (levels - dropped)


def initial(
    seed: int, layer: int, out: int, into: int, device: torch.device | str = "cpu"
) -> tuple[Float32[Tensor, "out into"], Float32[Tensor, " out"]]:
    """Return weights and biases as nn.Linear begins: uniform within 1 / sqrt(inputs) of zero."""

    def uniform(stream: int, count: int) -> Tensor:
        levels = 1 << 23  # odd numbers of 24 bits, which float32 holds exactly
        index = torch.arange(count, device=device)
        drawn = noise.below(noise.key(seed, stream, layer), index, torch.tensor(levels, device=device))
        return ((2 * drawn + 1).to(torch.float32) / levels - 1) / into**0.5

    return uniform(_WEIGHTS, out * into).view(out, into), uniform(_BIASES, out)


@dataclass(frozen=True)
class Trained:
    """A probe after its training: the weights and biases of its best evaluation, layer by layer."""

    parameters: tuple[Tensor, ...]
    score: float
    best_step: int
    stop_step: int


class Cohort:
    """The models of one shape (hidden widths, batch), with their optimiser and their early stopping.

    All that is kept is a list of tensors (model, ...): weights and biases, layer by layer. Those with the same input
    lie side by side; `numbers` tells which configuration each is. A model that has stopped leaves.
    """

    def __init__(self, configs: Mapping[int, ProbeConfig], rows: TrainingRows, *, seed: int) -> None:
        ordered = sorted(configs.items(), key=lambda entry: (*_input_of(entry[1]), entry[0]))
        self.numbers = [number for number, _ in ordered]
        self.configs = [config for _, config in ordered]
        self.answer, self.steps = rows.answer, 0
        self.batch = min(self.configs[0].batch, len(rows))
        device = rows.targets.device
        dim, outputs = next(iter(rows.inputs.values())).shape[1], rows.targets.shape[1]
        widths = (dim, *self.configs[0].hidden, outputs)
        self.values: list[Tensor] = []
        for layer, (into, out) in enumerate(itertools.pairwise(widths)):
            for start in initial(seed, layer, out, into, device):
                self.values.append(start.expand(len(ordered), *start.shape).contiguous())
        self.gradients, self.first, self.second = ([torch.zeros_like(v) for v in self.values] for _ in range(3))
        self.best = [value.clone() for value in self.values]
        self.best_score = torch.full((len(ordered),), -torch.inf, dtype=torch.float64)
        self.best_step = torch.zeros(len(ordered), dtype=torch.int64)
        self.stale = torch.zeros(len(ordered), dtype=torch.int64)
        self._arrange()

    def __len__(self) -> int:
        return len(self.configs)

    def _arrange(self) -> None:
        """Cut the models into tiles that fit the cache, each into runs that share their input."""
        size = len(self)
        if self.values[0].device.type == "cpu":
            size = max(1, TILE_BYTES // sum(4 * value.nbytes // len(self) for value in self.values))
        bounds = [(begin, min(begin + size, len(self))) for begin in range(0, len(self), size)]
        self.tiles = [(self._runs(*tile, _input_of), self._slots(*tile)) for tile in bounds]
        whole = [(0, len(self))] if len(self.values) == 2 else bounds  # a linear probe needs no room for hidden units
        self.valid_runs = [run for tile in whole for run in self._runs(*tile, lambda config: config.standardise)]

    def _runs(self, begin: int, end: int, what: Callable[[ProbeConfig], object]) -> list[tuple[int, int]]:
        """Return the stretches of models from `begin` to `end` that have `what` in common."""
        grouped = itertools.groupby(range(begin, end), lambda model: what(self.configs[model]))
        return [(members[0], members[-1] + 1) for members in (list(group) for _, group in grouped)]

    def _slots(self, begin: int, end: int) -> list[tuple[float, float, list[list[Tensor]], list[Tensor]]]:
        """Return Adam's calls for a tile: learning rate, L2, the tensors of the models that have these two, and their
        counts of steps, which Adam raises.
        """
        members: dict[tuple[float, float], list[int]] = {}
        for model in range(begin, end):
            members.setdefault((self.configs[model].learning_rate, self.configs[model].l2), []).append(model)
        kept = (self.values, self.gradients, self.first, self.second)
        slots = []
        for settings, models in members.items():
            lists = [[tensor[model] for tensor in tensors for model in models] for tensors in kept]
            counts = [torch.tensor(float(self.steps), device=tensor.device) for tensor in lists[0]]
            slots.append((*settings, lists, counts))
        return slots

    @torch.no_grad()
    def train(self, block: Block) -> None:
        """Go through the steps of a block, tile by tile."""
        for runs, slots in self.tiles:
            for step in range(EVERY):
                for begin, end in runs:
                    self._backward(begin, end, block, step)
                for learning_rate, l2, tensors, counts in slots:
                    adam(
                        *tensors,
                        [],
                        counts,
                        fused=True,
                        lr=learning_rate,
                        weight_decay=l2,
                        beta1=0.9,
                        beta2=0.999,
                        eps=1e-8,
                        amsgrad=False,
                        maximize=False,
                    )
        self.steps += EVERY

    def _backward(self, begin: int, end: int, block: Block, step: int) -> None:
        """Form the gradients of the models from `begin` to `end`, which share their input, at one step of a block."""
        config, models, batch = self.configs[begin], end - begin, self.batch
        weights, biases, into_weights, into_biases = (
            [tensor[begin:end] for tensor in tensors[which::2]]
            for tensors in (self.values, self.gradients)
            for which in (0, 1)
        )
        x = block.inputs(config.standardise, config.rates[0])[step, :batch]
        out = torch.addmm(biases[0].flatten()[:, None], weights[0].flatten(0, 1), x.T).view(models, -1, batch)
        inner = []
        for layer in range(1, len(weights)):
            rate = config.rates[layer]
            if rate:
                out.mul_(block.mask(layer, out.shape[1], rate)[step, :, :batch])
            inner.append(out.relu_())
            out = torch.baddbmm(biases[layer][..., None], weights[layer], out)
        delta = loss_gradient(self.answer, out, block.targets[step, :, :batch])
        for layer in range(len(weights) - 1, 0, -1):
            active = inner[layer - 1]
            torch.bmm(delta, active.transpose(1, 2), out=into_weights[layer])
            torch.sum(delta, dim=2, out=into_biases[layer])
            # where an activation is zero, by ReLU or dropout, nothing comes back
            factor = quantum(config.rates[layer])[2]
            delta = active.sign_().mul_(torch.bmm(weights[layer].transpose(1, 2), delta * factor))
        torch.sum(delta, dim=2, out=into_biases[0])
        torch.mm(delta.flatten(0, 1), x, out=into_weights[0].flatten(0, 1))

    @torch.no_grad()
    def predict(self, x: Inputs) -> Float32[Tensor, "model row output"]:
        """Return the logits of every model, without dropout; all models of one standardisation share a product."""
        rows, outputs = len(next(iter(x.values()))), self.values[-1].shape[1]
        logits = self.values[0].new_empty(len(self), outputs, rows)
        for begin, end in self.valid_runs:
            weights, biases = ([tensor[begin:end] for tensor in self.values[which::2]] for which in (0, 1))
            seen = x[self.configs[begin].standardise].T
            out = torch.addmm(biases[0].flatten()[:, None], weights[0].flatten(0, 1), seen).view(end - begin, -1, rows)
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                out = torch.baddbmm(bias[..., None], weight, out.relu_())
            logits[begin:end] = out
        return logits.transpose(1, 2)

    def judge(self, scores: Float64[Tensor, " model"]) -> None:
        """Take note of an evaluation: who improved keeps these weights."""
        better = scores > self.best_score
        self.best_score = torch.where(better, scores, self.best_score)
        self.best_step[better] = self.steps
        self.stale = torch.where(better, 0, self.stale + 1)
        which = better.nonzero()[:, 0].tolist()
        for kept, value in zip(self.best, self.values, strict=True):
            for model in which:
                kept[model].copy_(value[model])

    def leave(self, *, everybody: bool = False) -> dict[int, Trained]:
        """Take out the models whose patience is at its end, and return them by their numbers."""
        out = (self.stale >= PATIENCE) | everybody
        gone = {
            self.numbers[model]: Trained(
                tuple(kept[model].clone() for kept in self.best),
                float(self.best_score[model]),
                int(self.best_step[model]),
                self.steps,
            )
            for model in out.nonzero()[:, 0].tolist()
        }
        if gone:
            stay = (~out).nonzero()[:, 0]
            self.numbers, self.configs = (
                [kept[model] for model in stay.tolist()] for kept in (self.numbers, self.configs)
            )
            self.best_score, self.best_step, self.stale = (
                t[stay] for t in (self.best_score, self.best_step, self.stale)
            )
            stay = stay.to(self.values[0].device)
            for tensors in (self.values, self.gradients, self.first, self.second, self.best):
                tensors[:] = [tensor[stay] for tensor in tensors]
            if len(self):
                self._arrange()
        return gone


def _input_of(config: ProbeConfig) -> tuple[object, ...]:
    return (config.standardise, config.rates)


def loss_gradient(
    answer: Answer, logits: Float[Tensor, "model output batch"], targets: Float[Tensor, "output batch"]
) -> Float[Tensor, "model output batch"]:
    """Return the gradient of each model's loss: cross entropy, binary cross entropy over all cells, or mean square."""
    outputs, batch = targets.shape
    if answer == "multi":
        return logits.sigmoid_().sub_(targets).div_(batch * outputs)
    if answer == "regression":
        return logits.sub_(targets).mul_(2 / (batch * outputs))
    return logits.softmax(dim=1).sub_(targets).div_(batch)


def train(
    configs: Sequence[ProbeConfig],
    rows: TrainingRows,
    evaluate: Evaluate,
    *,
    seed: int,
    max_steps: int | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> list[Trained]:
    """Train every configuration until its own early stopping, and return them in the order given.

    `evaluate` scores all models of a cohort on valid, given the function that predicts and their settings.
    `on_progress` is told the step, how many have stopped, and of how many. `max_steps` ends what still runs
    (benchmarks).
    """
    shapes: dict[tuple[object, ...], dict[int, ProbeConfig]] = {}
    for number, config in enumerate(configs):
        shapes.setdefault((config.hidden, min(config.batch, len(rows))), {})[number] = config
    cohorts = [Cohort(members, rows, seed=seed) for members in shapes.values()]
    stopped: dict[int, Trained] = {}
    for step in itertools.count(0, EVERY):
        for cohort in cohorts:
            stopped |= cohort.leave(everybody=max_steps is not None and step >= max_steps)
        cohorts = [cohort for cohort in cohorts if len(cohort)]
        if on_progress:
            on_progress(step, len(stopped), len(configs))
        if not cohorts:
            return [stopped[number] for number in range(len(configs))]
        for cohort in cohorts:
            cohort.judge(evaluate(cohort.predict, cohort.configs))
        block = Block(rows, seed, step, max(cohort.batch for cohort in cohorts))
        for cohort in cohorts:
            cohort.train(block)
    raise AssertionError("unreachable")
