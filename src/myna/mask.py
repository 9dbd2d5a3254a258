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

    Cards are dealt from a deck (Fisher-Yates), all views at once, so a view costs as many random numbers as it keeps
    tokens. There is nothing to sort, so every device draws the same mask.
    """
    card = torch.arange(tokens, device=view.device)
    place = card[:visible]
    taken = place + noise.below(key, view[..., None] * tokens + place, tokens - place)
    deck = card.expand(*view.shape, tokens).clone()
    dealt = []
    for number in range(visible):
        at = taken[..., number : number + 1]
        dealt.append(deck.gather(-1, at))
        deck.scatter_(-1, at, deck[..., number : number + 1].clone())  # the card that is passed over fills the gap
    return torch.cat(dealt, dim=-1)
