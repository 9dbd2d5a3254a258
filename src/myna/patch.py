"""Patch geometry: which patches a crop has, where they lie, and their position vectors.

A crop is a stretch of a mel spectrogram, `frames` x `bands`. Its patches do not overlap. Tokens run row by row:
band patches outermost (lowest first), time patches innermost. The values of a patch run as they lie in memory, frame by
frame and in each from its lowest band up, so that no step has to turn them around.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from myna.errors import ConfigError

Kind = str  # "square", "vertical", or bands x frames, such as "4x4"


@dataclass(frozen=True)
class Patch:
    """The size of one patch: how many mel bands by how many frames."""

    bands: int
    frames: int

    @property
    def values(self) -> int:
        return self.bands * self.frames


# Section 3.4 of the paper: 16 x 16 as in vision; section 3.5: all bands, two frames.
PATCHES: dict[Kind, Patch] = {"square": Patch(16, 16), "vertical": Patch(128, 2)}


def patch_of(kind: Kind) -> Patch:
    """Return the size of a patch kind: one of the paper's by name, any other as bands x frames, such as "32x4"."""
    if kind in PATCHES:
        return PATCHES[kind]
    size = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", kind)
    if not size:
        raise ConfigError(
            f"There is no patch kind {kind!r}: {', '.join(PATCHES)}, or bands x frames such as 32x4 was wanted."
        )
    return Patch(int(size[1]), int(size[2]))


@dataclass(frozen=True)
class Grid:
    """The patches of one crop: `rows` along the bands, `columns` along time."""

    patch: Patch
    rows: int
    columns: int

    @classmethod
    def of(cls, patch: Patch, *, bands: int, frames: int) -> "Grid":
        """Lay patches over a crop of `bands` x `frames`, which must divide evenly."""
        if bands % patch.bands or frames % patch.frames or bands < patch.bands or frames < patch.frames:
            raise ConfigError(
                f"A crop of {bands} bands x {frames} frames cannot be cut into patches of {patch.bands} bands x "
                f"{patch.frames} frames: both sides must be whole multiples."
            )
        return cls(patch, bands // patch.bands, frames // patch.frames)

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def bands(self) -> int:
        return self.rows * self.patch.bands

    @property
    def frames(self) -> int:
        return self.columns * self.patch.frames

    def places(self, tokens: Int[Tensor, "batch visible"]) -> Float[Tensor, "batch visible 2"]:
        """Return the column and the row of each token, counted in patches."""
        return torch.stack([tokens % self.columns, tokens // self.columns], dim=-1).float()


def least_frames(kinds: Sequence[Kind]) -> int:
    """Return the frames of the shortest crop that whole patches of every kind fill."""
    return math.lcm(*(patch_of(kind).frames for kind in kinds))


def whole_frames(frames: int, kinds: Sequence[Kind]) -> int:
    """Floor a number of frames to whole patches of every kind: 98 are 96 for square patches, 98 for vertical ones.

    Raises ConfigError if not even the shortest such crop fits.
    """
    least = least_frames(kinds)
    if frames < least:
        sizes = " and ".join(str(patch_of(kind).frames) for kind in kinds)
        raise ConfigError(
            f"A crop of {frames} frames cannot be cut into patches of {sizes} frames: whole multiples were wanted, "
            f"{least} frames at least."
        )
    return frames // least * least


def patchify(mel: Float[Tensor, "batch frame band"], patch: Patch) -> Float[Tensor, "batch token value"]:
    """Cut frame-major crops into all their patches, in token order."""
    batch, frames, bands = mel.shape
    grid = Grid.of(patch, bands=bands, frames=frames)
    tiles = mel.reshape(batch, grid.columns, patch.frames, grid.rows, patch.bands)
    return tiles.permute(0, 3, 1, 2, 4).reshape(batch, grid.tokens, patch.values)


def unpatchify(patches: Float[Tensor, "batch token value"], grid: Grid) -> Float[Tensor, "batch frame band"]:
    """Lay all patches of a grid, in token order, side by side again: the inverse of `patchify`."""
    tiles = patches.unflatten(2, (grid.patch.frames, grid.patch.bands)).unflatten(1, (grid.rows, grid.columns))
    return tiles.permute(0, 2, 3, 1, 4).reshape(len(patches), grid.frames, grid.bands)


def positions(grid: Grid, dim: int) -> Float[Tensor, "token dim"]:
    """Return the 2-D sin-cos position vectors of a grid, float32 (SimpleViT, arXiv 2205.01580).

    A quarter of `dim` each for sin(time), cos(time), sin(band), cos(band), with frequencies from 1 down to 1/10000.
    """
    if dim % 4 or dim < 8:
        raise ConfigError(f"The width of the encoder is {dim}; 2-D positions need a multiple of 4, 8 or more.")
    quarter = dim // 4
    exponent = torch.arange(quarter, dtype=torch.float64) / (quarter - 1)
    omega = torch.exp(-exponent * math.log(10_000.0))
    row = torch.arange(grid.rows, dtype=torch.float64).repeat_interleave(grid.columns)[:, None] * omega
    column = torch.arange(grid.columns, dtype=torch.float64).repeat(grid.rows)[:, None] * omega
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()
