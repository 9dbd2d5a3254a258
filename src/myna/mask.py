"""Which patches of a grid stay visible. Masking is the only augmentation of the paper (section 3.2)."""

import torch
from jaxtyping import Int
from torch import Tensor

from myna import noise
from myna.errors import ConfigError


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Return how many of `tokens` stay: 5 of 48 at a mask ratio of 0.9, since int(0.9 x 48) = 43 are dropped."""
    # 1e-9: a product such as 0.7 * 10 must not fall below the whole number that it means
    visible = tokens - int(mask_ratio * tokens + 1e-9)
    if not 0.0 <= mask_ratio < 1.0 or visible < 1:
        raise ConfigError(f"A mask ratio of {mask_ratio} was given; it must be from 0 up to, but not with, 1.")
    return visible


def uniform(key: int, view: Int[Tensor, "*batch"], *, tokens: int, visible: int) -> Int[Tensor, "*batch visible"]:
    """Draw `visible` distinct tokens for every view number, each set equally likely, in random order.

    Each token gets random bits with its own number in the lowest places; the smallest keys win. So there are no
    ties, and a device that sorts in another way draws the same mask.
    """
    places = max(1, (tokens - 1).bit_length())
    token = torch.arange(tokens, device=view.device)
    keys = noise.bits(key, view[..., None] * tokens + token)
    keys = (keys & ~((1 << places) - 1)) | token
    chosen = keys.topk(visible, dim=-1, largest=False, sorted=True).values
    return chosen & ((1 << places) - 1)
