"""Two sets of projections become a scalar. Row-chunked, with the gradient formed in the forward pass.

The full square of similarities (2B x 2B) is never held: rows are taken a chunk at a time, and while a chunk is at
hand both its loss and its part of the gradient are formed, so nothing of it is kept for a second pass.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from myna.rank import SOLO, World

Form = Literal["paper", "ntxent"]
# A chunk of rows should stay in a core's cache, 4 MB of float32, or fill a GPU but stay in its L2, 32 MB. On a CPU at
# batch 4096, chunks of 128 rows take half the time of chunks of 1024.
_CHUNK_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 23}


class LossConfig(BaseModel):
    """Which contrastive loss, and how sharp."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Form = Field("paper", description="paper: positive pair not in the denominator; ntxent: SimCLR's")
    temperature: float = Field(0.1, gt=0, description="temperature tau of the similarities")


def contrastive(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    form: Form = "paper",
    temperature: float = 0.1,
    chunk: int | None = None,
    world: World = SOLO,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (loss, top-1 retrieval) of two views of the same clips; rows i of both are a positive pair.

    For anchor i with positive p, over both directions and averaged: -s_ip + log sum_j exp(s_ij), where s is the cosine
    similarity over tau and j runs over the other clips' two views (`paper`: equation 1 as printed, the decoupled form),
    or over those and p (`ntxent`: SimCLR, arXiv 2002.05709). Retrieval is the share of anchors whose positive is
    nearer than every other clip. With several ranks, `first` and `second` are this rank's rows, loss and retrieval
    those of the whole batch, and the gradient that of the whole batch's loss. Similarities, loss and gradient are
    float32 whatever comes in.
    """
    assert first.shape == second.shape, f"views of shape {tuple(first.shape)} and {tuple(second.shape)}"
    z = F.normalize(torch.stack([first, second]).float(), dim=2)
    return _Contrastive.apply(z, form, temperature, chunk, world)


class _Contrastive(torch.autograd.Function):
    """Loss of normalised rows (view, batch, dim); forms its gradient in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, mine: Tensor, form: Form, temperature: float, chunk: int | None, world: World
    ) -> tuple[Tensor, Tensor]:
        local = mine.shape[1]
        z = world.gather(mine).flatten(0, 1)  # views of clip i are rows i and i + batch
        rows = len(z)
        chunk = chunk or max(1, min(local, _CHUNK_NUMBERS.get(mine.device.type, 1 << 22) // rows))
        sums = z.new_zeros(2)  # of the loss, and of the positives found
        gradient = torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for first in (world.rank * local, rows // 2 + world.rank * local):
                for start in range(first, first + local, chunk):
                    part = slice(start, min(start + chunk, first + local))
                    sums += _rows(z, part, gradient, form=form, temperature=temperature)
        gradient = world.sum_mine(gradient.view(2, rows // 2, -1))
        ctx.save_for_backward(gradient.div_(rows * temperature))
        loss, top1 = world.sum(sums).div_(rows).unbind()
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _rows(z: Tensor, part: slice, gradient: Tensor, *, form: Form, temperature: float) -> Tensor:
    """Return the summed loss of some rows and how many positives are found; add to the (unscaled) gradient."""
    rows = len(z)
    anchors = z[part]
    number = torch.arange(part.start, part.stop, device=z.device)
    own, positive = number[:, None], ((number + rows // 2) % rows)[:, None]
    s = anchors @ z.T / temperature
    near = s.gather(1, positive)
    s.scatter_(1, own, -torch.inf).scatter_(1, positive, -torch.inf)
    found = (near.squeeze(1) > s.amax(1)).sum()
    if form == "ntxent":
        s.scatter_(1, positive, near)
    normaliser = s.logsumexp(1, keepdim=True)
    loss = (normaliser - near).sum()
    # d loss / d s: the softmax over the allowed rows, less one at the positive
    weight = s.sub_(normaliser).exp_().scatter_add_(1, positive, torch.full_like(near, -1.0))
    gradient[part] += weight @ z
    gradient.addmm_(weight.T, anchors)
    return torch.stack([loss, found])
