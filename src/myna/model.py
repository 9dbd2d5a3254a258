"""Myna: tokenizers (square, vertical, or both), one encoder, one projector. The patch kind is an argument.

Section 3 of the paper. The hybrid (3.6) has two tokenizers and one shared encoder and projector.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from myna.mel import FrontEnd
from myna.patch import PATCHES, Grid, Kind, patchify, positions
from myna.view import grids_of
from myna.vit import ViT, forward_flops

Amplitude = Literal["power", "log1p", "decibel"]


class ModelConfig(BaseModel):
    """Everything that decides the shape of a model and what it hears."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patches: tuple[Kind, ...] = Field(("square",), min_length=1, description="patch kinds: square, vertical, or both")
    dim: int = Field(384, ge=8, multiple_of=4, description="width of the encoder")
    depth: int = Field(12, ge=1, description="blocks of the encoder")
    heads: int = Field(6, ge=1, description="attention heads")
    head_dim: int = Field(64, ge=1, description="width of a head")
    mlp_dim: int = Field(1536, ge=1, description="hidden width of a block's feed-forward part")
    projector_hidden: int = Field(384, ge=1, description="hidden width of the projector (training only)")
    projector_dim: int = Field(
        128, ge=0, description="width of the projections that the loss compares; 0: no projector"
    )
    amplitude: Amplitude = Field("power", description="scale of the mel spectrogram that the encoder sees")
    segment_samples: int = Field(50_000, ge=1024, description="samples of one segment at 16 kHz")
    front_end: FrontEnd = FrontEnd()

    @field_validator("patches")
    @classmethod
    def _distinct(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each patch kind may be named once")
        return value

    @property
    def segment_frames(self) -> int:
        """Frames of a segment, floored to whole patches of the first kind: 96, or 98 for vertical alone."""
        return next(iter(self.grids().values())).frames

    def grids(self, segment_samples: int | None = None) -> dict[Kind, Grid]:
        """Return the patch grid of each kind on a segment of this many samples."""
        frames = self.front_end.frames(segment_samples or self.segment_samples)
        return grids_of(self.patches, bands=self.front_end.bands, frames=frames)

    def flops(self, kind: Kind, *, tokens: int) -> int:
        """Count the matrix-product operations of one sample's forward pass with `tokens` tokens."""
        shape = {name: getattr(self, name) for name in ("dim", "depth", "heads", "head_dim", "mlp_dim")}
        projector = 2 * (self.dim + self.projector_dim) * self.projector_hidden if self.projector_dim else 0
        return forward_flops(tokens=tokens, **shape) + 2 * tokens * PATCHES[kind].values * self.dim + projector


def scale(power: Tensor, amplitude: Amplitude) -> Tensor:
    """Turn mel power into the amplitude that the encoder sees; the release's weights take raw power."""
    if amplitude == "log1p":
        return power.log1p()
    if amplitude == "decibel":
        return 10.0 * power.clamp(min=1e-10).log10()
    return power


class Tokenizer(nn.Module):
    """Patch values become a token: norm, linear, norm."""

    def __init__(self, values: int, dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(values)
        self.linear = nn.Linear(values, dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, patches: Float[Tensor, "batch token value"]) -> Float[Tensor, "batch token dim"]:
        return self.norm_out(self.linear(self.norm_in(patches)))


class MynaModel(nn.Module):
    """The network of the paper. `forward` is for training, `embed` and `encode` for use; `seed` decides the weights."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokenizers = nn.ModuleDict(
                {kind: Tokenizer(PATCHES[kind].values, config.dim) for kind in config.patches}
            )
            self.encoder = ViT(
                dim=config.dim,
                depth=config.depth,
                heads=config.heads,
                head_dim=config.head_dim,
                mlp_dim=config.mlp_dim,
            )
            # the release's weights come without a projector: then there is none, rather than a random one
            self.projector = nn.Identity()
            if config.projector_dim:
                self.projector = nn.Sequential(
                    nn.Linear(config.dim, config.projector_hidden),
                    nn.GELU(),
                    nn.Linear(config.projector_hidden, config.projector_dim),
                )
        for kind, grid in config.grids().items():
            self.register_buffer(f"positions_{kind}", positions(grid, config.dim), persistent=False)

    def embed(
        self,
        kind: Kind,
        patches: Float[Tensor, "batch visible value"],
        tokens: Int[Tensor, "batch visible"] | None = None,
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Encode patches of power and pool them. `tokens` says which they are; without it, all of the grid in order."""
        return self.encoder(self._tokens(kind, patches, tokens, grid)).mean(dim=1)

    def forward(self, patches: dict[Kind, Tensor], tokens: dict[Kind, Tensor]) -> dict[Kind, Tensor]:
        """Return the projections that the loss compares: (batch, projection) of each kind.

        `patches` are (batch, visible, value), `tokens` (batch, visible). Kinds with equally many visible tokens go
        through the encoder side by side, in one pass.
        """
        x = {kind: self._tokens(kind, patches[kind], tokens[kind], None) for kind in patches}
        if len({part.shape[1] for part in x.values()}) > 1:
            return {kind: self.projector(self.encoder(part).mean(dim=1)) for kind, part in x.items()}
        z = self.projector(self.encoder(torch.cat(list(x.values()))).mean(dim=1))
        return dict(zip(x, z.split([len(part) for part in x.values()]), strict=True))

    def encode(
        self, mel: Float[Tensor, "batch frame band"], kinds: Sequence[Kind] | None = None
    ) -> Float[Tensor, "batch dims"]:
        """Embed whole crops of mel power, unmasked; several kinds stand side by side, square first as configured.

        Frames beyond whole patches of the first kind are left out.
        """
        grids = grids_of(self.config.patches, bands=mel.shape[2], frames=mel.shape[1])
        parts = []
        for kind in kinds or self.config.patches:
            grid = grids[kind]
            parts.append(self.embed(kind, patchify(mel[:, : grid.frames], grid.patch), grid=grid))
        return torch.cat(parts, dim=1)

    def _tokens(self, kind: Kind, patches: Tensor, tokens: Tensor | None, grid: Grid | None) -> Tensor:
        table = self._positions(kind, grid)
        x = self.tokenizers[kind](scale(patches, self.config.amplitude))
        return x + (table if tokens is None else table[tokens])

    def _positions(self, kind: Kind, grid: Grid | None) -> Tensor:
        table = self.get_buffer(f"positions_{kind}")
        if grid is None or grid.tokens == len(table):
            return table
        return positions(grid, self.config.dim).to(table)
