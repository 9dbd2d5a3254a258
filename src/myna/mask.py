"""Which patches of a grid stay visible. Masking is the only augmentation of the paper (section 3.2).

The paper masks uniformly and names other policies as future work (section 5.3). Each policy here draws the masks of
any number of views at once, from a key and the views' numbers alone, and keeps exactly as many tokens as it is told.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from myna import noise
from myna.errors import ConfigError
from myna.pair import VIEWS
from myna.patch import Grid

Policy = Literal["uniform", "time", "frequency", "blocks", "gaussian", "complement"]


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
    return _deal(key, view, tokens, tokens=tokens, visible=visible)


def _deal(
    key: int, view: Int[Tensor, "*batch"], cards: int | Int[Tensor, "*batch 1"], *, tokens: int, visible: int
) -> Int[Tensor, "*batch visible"]:
    """Deal from decks of which each has `cards`, `tokens` at most."""
    card = torch.arange(tokens, device=view.device)
    place = card[:visible]
    taken = place + noise.below(key, view[..., None] * tokens + place, cards - place)
    deck = card.expand(*view.shape, tokens).clone()
    dealt = []
    for number in range(visible):
        at = taken[..., number : number + 1]
        dealt.append(deck.gather(-1, at))
        deck.scatter_(-1, at, deck[..., number : number + 1].clone())  # the card that is passed over fills the gap
    return torch.cat(dealt, dim=-1)


def check(policy: Policy, *, grid: Grid, visible: int) -> None:
    """Raise ConfigError if a policy cannot keep `visible` tokens of this grid."""
    assert policy in get_args(Policy), policy
    if policy == "frequency" and grid.rows == 1:
        raise ConfigError(
            f"Frequency masks keep whole rows of patches, and patches of {grid.patch.bands} bands x "
            f"{grid.patch.frames} frames make one row only: take another mask policy, or --patches square."
        )
    if policy == "complement" and 2 * visible > grid.tokens:
        raise ConfigError(
            f"Two views of {visible} tokens each cannot share no patch when there are {grid.tokens}: with complement, "
            "the mask ratio must be 0.5 or more."
        )


def draw(
    policy: Policy, key: int, view: Int[Tensor, "*batch"], *, grid: Grid, visible: int, sigma: float = 0.2
) -> Int[Tensor, "*batch visible"]:
    """Draw `visible` distinct tokens of the grid for every view number, by policy; their order means nothing.

    `uniform`: each set of tokens equally likely. `time`, `frequency`: whole columns, or whole rows, in random order,
    and a random part of the last one. `blocks`: a random part of a rectangle that is as small as its height allows;
    every height that fits is equally likely, then every place. `gaussian`: one after another, with a chance that falls
    with the distance from a random token as a normal distribution whose standard deviation is `sigma` of the grid's
    sides (after GLIP, arXiv 2403.15837, where the centre is the image's). `complement`: uniform, but views 2i and
    2i + 1 share no token.
    """
    check(policy, grid=grid, visible=visible)
    if policy == "uniform":
        return uniform(key, view, tokens=grid.tokens, visible=visible)
    if policy == "complement":
        both = uniform(key, view // VIEWS, tokens=grid.tokens, visible=VIEWS * visible)
        return torch.where((view % VIEWS == 0)[..., None], both[..., :visible], both[..., visible:])
    if policy == "gaussian":
        return _gaussian(key, view, grid=grid, visible=visible, sigma=sigma)
    if policy == "blocks":
        row, column = _block(key, view, grid=grid, visible=visible)
    elif policy == "time":
        column, row = _lines(key, view, lines=grid.columns, each=grid.rows, visible=visible)
    else:
        row, column = _lines(key, view, lines=grid.rows, each=grid.columns, visible=visible)
    return row * grid.columns + column


def _lines(key: int, view: Tensor, *, lines: int, each: int, visible: int) -> tuple[Tensor, Tensor]:
    """Draw whole lines of `each` tokens and a part of one more; return each token's line and its place in it."""
    line = uniform(noise.key(key, 1), view, tokens=lines, visible=-(-visible // each))
    place = uniform(noise.key(key, 2), view, tokens=each, visible=min(each, visible))
    number = torch.arange(visible, device=view.device)
    return line[..., number // each], place[..., number % each]


def _block(key: int, view: Tensor, *, grid: Grid, visible: int) -> tuple[Tensor, Tensor]:
    """Draw each view's rectangle, and in it tokens; return their rows and columns."""
    lowest, highest = -(-visible // grid.columns), min(grid.rows, visible)
    largest = max(height * -(-visible // height) for height in range(lowest, highest + 1))
    number = view[..., None]
    height = lowest + noise.below(noise.key(key, 1), number, torch.full_like(number, highest - lowest + 1))
    width = (visible + height - 1) // height
    top = noise.below(noise.key(key, 2), number, grid.rows - height + 1)
    left = noise.below(noise.key(key, 3), number, grid.columns - width + 1)
    cell = _deal(noise.key(key, 4), view, height * width, tokens=largest, visible=visible)
    return top + cell // width, left + cell % width


def _gaussian(key: int, view: Tensor, *, grid: Grid, visible: int, sigma: float) -> Int[Tensor, "*batch visible"]:
    """Race: of exponential waiting times at each token's rate, the shortest; float64, so that devices agree."""
    token, number = torch.arange(grid.tokens, device=view.device), view[..., None]
    centre = noise.below(noise.key(key, 1), number, torch.full_like(number, grid.tokens))
    across = (token % grid.columns - centre % grid.columns).double() / (sigma * grid.columns)
    along = (token // grid.columns - centre // grid.columns).double() / (sigma * grid.rows)
    share = noise.unit(noise.key(key, 2), number * grid.tokens + token)
    wait = share.log().neg().log() + (across**2 + along**2) / 2
    return wait.topk(visible, dim=-1, largest=False, sorted=True).indices
