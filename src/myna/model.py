"""Myna: tokenizers (square, vertical, or both), one encoder, one projector. The patch kind is an argument.

Section 3 of the paper. The hybrid (3.6) has two tokenizers and one shared encoder and projector.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from myna.errors import ConfigError
from myna.mel import FrontEnd
from myna.patch import Grid, Kind, patch_of, patchify, positions
from myna.relative import Positions
from myna.view import grids_of
from myna.vit import ViT, forward_flops

Amplitude = Literal["power", "log1p", "decibel"]


class ModelConfig(BaseModel):
    """Everything that decides the shape of a model and what it hears."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patches: tuple[Kind, ...] = Field(
        ("square",), min_length=1, description="patch kinds: square, vertical, bands x frames such as 32x4, or several"
    )
    dim: int = Field(384, ge=8, multiple_of=4, description="width of the encoder")
    depth: int = Field(12, ge=1, description="blocks of the encoder")
    heads: int = Field(6, ge=1, description="attention heads")
    head_dim: int = Field(64, ge=1, description="width of a head")
    mlp_dim: int = Field(1536, ge=1, description="hidden width of a block's feed-forward part")
    projector_hidden: int = Field(384, ge=1, description="hidden width of the projector (training only)")
    projector_dim: int = Field(
        128, ge=0, description="width of the projections that the loss compares; 0: no projector"
    )
    positions: Positions = Field("sincos", description="sincos, or relative: alibi, rope")
    decoder_depth: int = Field(0, ge=0, description="blocks of a masked auto-encoder's decoder; 0 learns by contrast")
    decoder_dim: int = Field(512, ge=8, multiple_of=4, description="width of the decoder")
    decoder_heads: int = Field(8, ge=1, description="attention heads of the decoder")
    amplitude: Amplitude = Field("power", description="scale of the mel spectrogram that the encoder sees")
    segment_samples: int = Field(50_000, ge=1024, description="samples of one segment at 16 kHz")
    front_end: FrontEnd = FrontEnd()

    @field_validator("patches")
    @classmethod
    def _distinct(cls, value: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each patch kind may be named once")
        for kind in value:
            try:
                patch_of(kind)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @classmethod
    def of_arrays(cls, *, bands: int, frames: int, **settings: Any) -> "ModelConfig":
        """Return settings for arrays of this size that are no spectrograms, such as images: rows x columns."""
        front_end = FrontEnd(bands=bands)
        return cls(front_end=front_end, segment_samples=(frames - 1) * front_end.hop_samples, **settings)

    @property
    def segment_frames(self) -> int:
        """Frames of a segment, floored to whole patches of every kind: 96, or 98 for vertical alone."""
        return next(iter(self.grids().values())).frames

    def grids(self, segment_samples: int | None = None) -> dict[Kind, Grid]:
        """Return the patch grid of each kind on a segment of this many samples."""
        frames = self.front_end.frames(segment_samples or self.segment_samples)
        return grids_of(self.patches, bands=self.front_end.bands, frames=frames)

    def shaping(self) -> dict[str, Any]:
        """Return the settings that shape this model: those of a projector or a decoder only if it has one."""
        idle = {"decoder_dim", "decoder_heads"}
        if self.decoder_depth:
            idle = {"projector_hidden", "projector_dim"}
        elif not self.projector_dim:
            idle |= {"projector_hidden"}
        return self.model_dump(exclude=idle)

    def flops(self, kind: Kind, *, tokens: int) -> int:
        """Count the matrix-product operations of one sample's forward pass with `tokens` visible tokens.

        A masked auto-encoder's decoder takes the whole grid, whatever is visible.
        """
        values, whole = patch_of(kind).values, self.grids()[kind].tokens
        count = forward_flops(tokens=tokens, **self.encoder()) + 2 * tokens * values * self.dim
        if not self.decoder_depth:
            projector = 2 * (self.dim + self.projector_dim) * self.projector_hidden if self.projector_dim else 0
            return count + projector
        ends = 2 * self.decoder_dim * (tokens * self.dim + whole * values)
        return count + forward_flops(tokens=whole, **self.decoder()) + ends

    def encoder(self) -> dict[str, int]:
        """Return the shape of the encoder."""
        return {
            "dim": self.dim,
            "depth": self.depth,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "mlp_dim": self.mlp_dim,
        }

    def decoder(self) -> dict[str, int]:
        """Return the shape of the decoder; a block's feed-forward part is as wide as the encoder's."""
        return {
            "dim": self.decoder_dim,
            "depth": self.decoder_depth,
            "heads": self.decoder_heads,
            "head_dim": self.head_dim,
            "mlp_dim": self.mlp_dim,
        }


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
                {kind: Tokenizer(patch_of(kind).values, config.dim) for kind in config.patches}
            )
            self.encoder = ViT(**config.encoder(), positions=config.positions)
            self._add_head()
        self.grids = config.grids()
        for kind, grid in self.grids.items() if config.positions == "sincos" else ():
            self.register_buffer(f"positions_{kind}", positions(grid, config.dim), persistent=False)

    def _add_head(self) -> None:
        """Add what only the training needs."""
        config = self.config
        # the release's weights come without a projector: then there is none, rather than a random one
        self.projector = nn.Identity()
        if config.projector_dim:
            self.projector = nn.Sequential(
                nn.Linear(config.dim, config.projector_hidden),
                nn.GELU(),
                nn.Linear(config.projector_hidden, config.projector_dim),
            )

    def embed(
        self,
        kind: Kind,
        patches: Float[Tensor, "batch visible value"],
        tokens: Int[Tensor, "batch visible"] | None = None,
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Encode patches of power and pool them. `tokens` says which they are; without it, all of the grid in order."""
        return self.encoder(*self._tokens(kind, patches, tokens, grid)).mean(dim=1)

    def forward(self, patches: dict[Kind, Tensor], tokens: dict[Kind, Tensor]) -> dict[Kind, Tensor]:
        """Return the projections that the loss compares: (batch, projection) of each kind.

        `patches` are (batch, visible, value), `tokens` (batch, visible). Kinds with equally many visible tokens go
        through the encoder side by side, in one pass.
        """
        parts = {kind: self._tokens(kind, patches[kind], tokens[kind], None) for kind in patches}
        if len({x.shape[1] for x, _ in parts.values()}) > 1:
            return {kind: self.projector(self.encoder(*part).mean(dim=1)) for kind, part in parts.items()}
        x = torch.cat([x for x, _ in parts.values()])
        places = None if self.config.positions == "sincos" else torch.cat([places for _, places in parts.values()])
        z = self.projector(self.encoder(x, places).mean(dim=1))
        return dict(zip(parts, z.split([len(x) for x, _ in parts.values()]), strict=True))

    def encode(
        self, mel: Float[Tensor, "batch frame band"], kinds: Sequence[Kind] | None = None
    ) -> Float[Tensor, "batch dims"]:
        """Embed whole crops of mel power, unmasked; several kinds stand side by side, square first as configured.

        Frames beyond whole patches of every kind are left out.
        """
        grids = grids_of(self.config.patches, bands=mel.shape[2], frames=mel.shape[1])
        parts = []
        for kind in kinds or self.config.patches:
            grid = grids[kind]
            parts.append(self.embed(kind, patchify(mel[:, : grid.frames], grid.patch), grid=grid))
        return torch.cat(parts, dim=1)

    def _tokens(
        self, kind: Kind, patches: Tensor, tokens: Tensor | None, grid: Grid | None
    ) -> tuple[Float[Tensor, "batch visible dim"], Float[Tensor, "#batch visible 2"] | None]:
        """Return tokens with their positions in them, or, if positions are relative, tokens and their places."""
        x = self.tokenizers[kind](scale(patches, self.config.amplitude))
        if self.config.positions == "sincos":
            table = self._positions(kind, grid)
            return x + (table if tokens is None else table[tokens]), None
        grid = grid or self.grids[kind]
        return x, grid.places(torch.arange(grid.tokens, device=x.device)[None] if tokens is None else tokens)

    def _positions(self, kind: Kind, grid: Grid | None) -> Tensor:
        table = self.get_buffer(f"positions_{kind}")
        if grid is None or grid.tokens == len(table):
            return table
        return positions(grid, self.config.dim).to(table)
