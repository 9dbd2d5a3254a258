"""Relative positions: what two tokens are to each other depends on how far apart they lie, not on where.

A token's place is its column and row on the grid of patches. As no place has numbers of its own, a model hears tracks
of any length in one pass, and music that begins later sounds the same to it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from myna.errors import ConfigError

Positions = Literal["sincos", "alibi", "rope"]
Attend = Callable[..., Tensor]  # (query, key, value, bias or None) → values mixed
BASE = 10_000.0  # the slowest rotation turns once in 2 pi x almost as many patches
# Numbers of a bias that are formed at once, 256 MB in float32; a track of ten minutes would have 2 GB of them.
_BIAS_NUMBERS = 1 << 26


class Relation(ABC):
    """What attention needs to know of the places of one batch, made once and used by every block."""

    @abstractmethod
    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by one of the forms of `vit.ATTENTION`; each tensor is (batch, head, token, head_dim)."""


class Rotation(Relation):
    """Turns pairs of numbers of queries and keys by angles; their products then depend on differences of angles."""

    def __init__(self, angle: Float[Tensor, "batch token pair"]) -> None:
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]  # (batch, 1, token, pair): alike for all heads

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(self.turn(query), self.turn(key), value)

    def turn(self, x: Float[Tensor, "batch head token head_dim"]) -> Float[Tensor, "batch head token head_dim"]:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([first * self.cos - second * self.sin, first * self.sin + second * self.cos], dim=-1)
        return turned.flatten(-2).to(x.dtype)


class Nearness(Relation):
    """Takes a penalty for distance off the scores, steeper in some heads than in others."""

    def __init__(self, places: Float[Tensor, "batch token 2"], slopes: Float[Tensor, " head"]) -> None:
        self.places, self.slopes = places, slopes
        batch, tokens, _ = places.shape
        self.rows = max(1, _BIAS_NUMBERS // (batch * len(slopes) * tokens))  # queries whose bias is held at once
        self.whole = self.bias(slice(None)) if self.rows >= tokens else None

    def bias(self, rows: slice) -> Float[Tensor, "batch head row token"]:
        apart = (self.places[:, rows, None] - self.places[:, None]).square().sum(-1).sqrt()
        return -self.slopes[:, None, None] * apart[:, None]

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.whole is not None:
            return attend(query, key, value, self.whole.to(query.dtype))
        parts = [slice(start, start + self.rows) for start in range(0, query.shape[2], self.rows)]
        mixed = [attend(query[:, :, part], key, value, self.bias(part).to(query.dtype)) for part in parts]
        return torch.cat(mixed, dim=2)


class Rope(nn.Module):
    """Rotary positions in two dimensions (RoFormer, arXiv 2104.09864; axial, as in arXiv 2403.13298).

    The first half of a head's numbers turns with the column, the second with the row. Pair k of each half turns by
    10000^(-k / pairs) radians a patch.
    """

    def __init__(self, *, heads: int, head_dim: int) -> None:  # noqa: ARG002 (all heads turn alike)
        super().__init__()
        if head_dim % 4:
            raise ConfigError(f"Rotary positions need heads with a multiple of 4 numbers, not {head_dim}.")
        pairs = head_dim // 4
        omega = torch.exp(-torch.arange(pairs, dtype=torch.float64) / pairs * math.log(BASE))
        self.register_buffer("omega", omega.float(), persistent=False)

    def forward(self, places: Float[Tensor, "batch token 2"]) -> Rotation:
        return Rotation((places.to(self.omega)[..., None] * self.omega).flatten(2))


class Alibi(nn.Module):
    """Linear biases (ALiBi, arXiv 2108.12409) of the distance between two patches on the grid (2-D: arXiv 2311.00566).

    Head h of n takes 2^(-8 h / n) a patch off the score, h from 1: some heads hear close by, others far.
    """

    def __init__(self, *, heads: int, head_dim: int) -> None:  # noqa: ARG002
        super().__init__()
        slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, dtype=torch.float64))
        self.register_buffer("slopes", slopes.float(), persistent=False)

    def forward(self, places: Float[Tensor, "batch token 2"]) -> Nearness:
        return Nearness(places.to(self.slopes), self.slopes)


RELATIVE: dict[str, type[Rope] | type[Alibi]] = {"rope": Rope, "alibi": Alibi}
