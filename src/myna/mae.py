"""The masked auto-encoder that the paper compares with (Table 1, Appendix B): the same encoder, and a decoder.

The encoder sees the visible patches alone. The decoder sees every place of the crop, the encoder's tokens where there
are some and one learned mask token elsewhere, and says what lies there (arXiv 2111.06377).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from myna.model import ModelConfig, MynaModel, scale
from myna.patch import Kind, patch_of, positions
from myna.vit import ViT


class Decoder(nn.Module):
    """Visible tokens and their numbers become the values of every patch of the grid. Training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grids, self.relative = config.grids(), config.positions != "sincos"
        shape = config.decoder()
        self.enter = nn.Linear(config.dim, shape["dim"])
        self.mask = nn.Parameter(0.02 * torch.randn(shape["dim"]))
        self.blocks = ViT(**shape, positions=config.positions)
        self.leave = nn.ModuleDict({kind: nn.Linear(shape["dim"], patch_of(kind).values) for kind in config.patches})
        for kind, grid in self.grids.items() if not self.relative else ():
            self.register_buffer(f"positions_{kind}", positions(grid, shape["dim"]), persistent=False)

    def forward(
        self, kind: Kind, latent: Float[Tensor, "batch visible dim"], tokens: Int[Tensor, "batch visible"]
    ) -> Float[Tensor, "batch token value"]:
        grid, seen = self.grids[kind], self.enter(latent)
        where = tokens[..., None].expand_as(seen)
        x = self.mask.to(seen.dtype).expand(len(seen), grid.tokens, -1).scatter(1, where, seen)
        if self.relative:
            every = torch.arange(grid.tokens, device=x.device)[None]
            return self.leave[kind](self.blocks(x, grid.places(every)))
        return self.leave[kind](self.blocks(x + self.get_buffer(f"positions_{kind}")))


class MaskedAutoEncoder(MynaModel):
    """The model with a decoder in the projector's place. `embed` and `encode` are the encoder's, as ever."""

    def _add_head(self) -> None:
        self.decoder = Decoder(self.config)

    def forward(self, patches: dict[Kind, Tensor], tokens: dict[Kind, Tensor]) -> dict[Kind, Tensor]:
        """Return what the decoder says of every patch, in the model's amplitude: (batch, token, value) of each kind.

        `patches` are (batch, token, value) of power, all of the crop in order; only those that `tokens` (batch,
        visible) name are looked at.
        """
        found = {}
        for kind, every in patches.items():
            seen = every.gather(1, tokens[kind][..., None].expand(-1, -1, every.shape[2]))
            latent = self.encoder(*self._tokens(kind, seen, tokens[kind], None))
            found[kind] = self.decoder(kind, latent, tokens[kind])
        return found

    def reconstruct(
        self, kind: Kind, patches: Float[Tensor, "batch token value"], tokens: Int[Tensor, "batch visible"]
    ) -> Float[Tensor, "batch token value"]:
        """Return a crop's patches in the model's amplitude: the visible as they are, the masked as the decoder says."""
        target = scale(patches, self.config.amplitude)
        hidden = masked(tokens, target.shape[1])[..., None]
        return torch.where(hidden, self({kind: patches}, {kind: tokens})[kind].to(target), target)


def masked(tokens: Int[Tensor, "batch visible"], count: int) -> Bool[Tensor, "batch token"]:
    """Say which of `count` tokens are not among the visible ones."""
    return torch.ones(len(tokens), count, dtype=torch.bool, device=tokens.device).scatter(1, tokens, False)


def masked_error(
    found: Float[Tensor, "batch token value"],
    target: Float[Tensor, "batch token value"],
    hidden: Bool[Tensor, "batch token"],
) -> Float[Tensor, ""]:
    """Return the mean squared error over the values of the masked patches, and of them alone."""
    error = (found - target).square().mean(dim=2)
    return (error * hidden).sum() / hidden.sum()


def build_model(config: ModelConfig, *, seed: int = 0) -> MynaModel:
    """Build the model that a config describes: with a decoder, a masked auto-encoder."""
    return (MaskedAutoEncoder if config.decoder_depth else MynaModel)(config, seed=seed)
