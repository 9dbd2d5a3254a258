"""The settings of a probe, and the grids of them: JukeMIR's 216, three of them, and the wide heads for keys."""

import itertools
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

Protocol = Literal["jukemir", "windows", "marble"]
Head = Literal["grid", "quick", "mlp-wide"]  # the names of the grids below
Rate = Annotated[float, Field(ge=0, lt=1)]


class ProbeConfig(BaseModel):
    """A probe and how it is trained: dropout → [linear → ReLU → dropout] for each hidden width → linear.

    `dropout` is that of the input, `hidden_dropout` that after each ReLU (None: the same). `l2` is Adam's coupled
    weight decay, on all weights and biases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    standardise: bool
    hidden: tuple[PositiveInt, ...]
    batch: PositiveInt
    learning_rate: PositiveFloat
    dropout: Rate
    l2: NonNegativeFloat
    hidden_dropout: Rate | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """Return the dropout in front of each linear layer."""
        inner = self.dropout if self.hidden_dropout is None else self.hidden_dropout
        return (self.dropout, *(inner for _ in self.hidden))


# JukeMIR's grid, the last setting varying fastest; a tie on valid goes to the configuration that comes first here
GRID: tuple[ProbeConfig, ...] = tuple(
    ProbeConfig(standardise=standardise, hidden=hidden, batch=batch, learning_rate=rate, dropout=dropout, l2=l2)
    for standardise, hidden, batch, rate, dropout, l2 in itertools.product(
        (False, True), ((), (512,)), (64, 256), (1e-5, 1e-4, 1e-3), (0.25, 0.5, 0.75), (0.0, 1e-4, 1e-3)
    )
)

# Three of the 216, for a quick look and the demo: linear, standardised, batches of 64 at the fastest rate
QUICK: tuple[ProbeConfig, ...] = tuple(
    config
    for config in GRID
    if config.standardise and not config.hidden and (config.batch, config.learning_rate, config.l2) == (64, 1e-3, 0.0)
)

# The two heads of KeyMyna (arXiv 2604.10021). Its widths and dropout are known; that the dropout follows the ReLUs
# (0.99 of 384 inputs would leave four), and the rest of the settings, are ours.
WIDE: tuple[ProbeConfig, ...] = tuple(
    ProbeConfig(
        standardise=True, hidden=hidden, batch=256, learning_rate=1e-4, dropout=0.0, hidden_dropout=dropout, l2=0.0
    )
    for hidden, dropout in (((2048,), 0.75), ((4096, 4096), 0.99))
)
