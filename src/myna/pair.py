"""Where the two segments of a clip begin: anywhere in it (the paper), near each other, or at one place."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from myna import noise

Pair = Literal["clip", "near", "segment"]
VIEWS = 2  # of each clip


def starts(
    pair: Pair,
    key: int,
    view: Int[Tensor, "view batch"],
    *,
    places: Int[Tensor, " batch"],
    reach: int,
) -> Int[Tensor, "view batch"]:
    """Draw the first frame of each view's segment, from 0 to its clip's `places` - 1; `view` holds the views' numbers.

    `clip`: each view's anywhere, all places equally likely. `segment`: the first view's, for both. `near`: the second
    view's is at most `reach` frames from the first's, all such places in the clip equally likely.
    """
    drawn = noise.below(key, view, places)
    if pair == "clip":
        return drawn
    if pair == "segment":
        return drawn[:1].expand_as(drawn)
    low = (drawn[0] - reach).clamp(min=0)
    high = torch.minimum(drawn[0] + reach, places - 1)
    return torch.stack([drawn[0], low + noise.below(key, view[1], high - low + 1)])
