"""Two sets of projections become a scalar, with its gradient formed in the forward pass.

The full square of similarities (2B x 2B) is never held: it is taken a piece at a time. It is symmetric, so where one
process has all rows and one temperature, only the half above the diagonal is formed: once for the loss, once for the
gradient. Else chunks of whole rows are formed, each once, and give their loss and their part of the gradient together.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from myna.rank import SOLO, World

Form = Literal["paper", "ntxent", "sogclr"]
# A chunk of rows should stay in a core's cache, 6 MB of float32, or fill a GPU but stay in its L2, 32 MB.
_CHUNK_NUMBERS = {"cpu": 3 << 19, "cuda": 1 << 23}
_SIDE = {"cpu": 384, "cuda": 2048}  # of a square block, likewise
# Of the largest batches a chunk is more than that: a product of a dozen rows wastes what it multiplies with.
_LEAST_ROWS = {"cpu": 64, "cuda": 256}
# From this temperature on, exp((cosine - 1) / temperature) is at least exp(-40), so float32 holds a row's sum well
# whatever its largest term is.
_MILD = 0.05


def contrastive(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    form: Literal["paper", "ntxent"] = "paper",
    temperature: float | Float[Tensor, ""] = 0.1,
    chunk: int | None = None,
    world: World = SOLO,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (loss, top-1 retrieval) of two views of the same clips; rows i of both are a positive pair.

    For anchor i with positive p, over both directions and averaged: -s_ip + log sum_j exp(s_ij), where s is the cosine
    similarity over tau and j runs over the other clips' two views (`paper`: equation 1 as printed, the decoupled form),
    or over those and p (`ntxent`: SimCLR, arXiv 2002.05709). Retrieval is the share of anchors whose positive is
    nearer than every other clip. With several ranks, `first` and `second` are this rank's rows, loss and retrieval
    those of the whole batch, and the gradient that of the whole batch's loss; a temperature that is a tensor gets an
    even share of its gradient on each rank. Similarities, loss and gradient are float32 whatever comes in.
    """
    loss, top1, _, _ = _Contrastive.apply(_normalised(first, second), temperature, form, None, 1.0, chunk, world)
    return loss, top1


@dataclass(frozen=True)
class Averaged:
    """What one step of SogCLR finds.

    `log_u` (view, batch) is the logarithm of each anchor's moving average after this step. `weighted` is the mean of
    its similarities over tau to the other clips, by the weights that the gradient gives them; None where all clips have
    one temperature, since only their own are learned by it.
    """

    loss: Float[Tensor, ""]
    top1: Float[Tensor, ""]
    log_u: Float[Tensor, "view batch"]
    weighted: Float[Tensor, "view batch"] | None


def sogclr(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    log_u: Float[Tensor, " batch"],
    gamma: float = 0.9,
    temperature: float | Float[Tensor, " batch"] = 0.1,
    chunk: int | None = None,
    world: World = SOLO,
) -> Averaged:
    """Take one step of SogCLR (arXiv 2202.12387); rows as for `contrastive`.

    `log_u` is the logarithm of each clip's moving average u as it was, -inf where the clip is new. For anchor i, g is
    the mean of exp(cosine / tau) over the other clips' two views. Its average becomes (1 - gamma) u + gamma g, or g for
    a new clip, and the gradient weighs each of these cosines with exp(cosine / tau) over that, as a constant, against
    the positive's with -1. Both directions are summed, and clips averaged. So at gamma = 1 the gradient is 2 tau times
    that of the paper's form. The loss is tau log u less the positive's cosine, summed and averaged likewise: the global
    loss that SogCLR descends, as the averages estimate it. Only logarithms are kept: no temperature overflows.
    """
    z = _normalised(first, second)
    return Averaged(*_Contrastive.apply(z, temperature, "sogclr", log_u, gamma, chunk, world))


def _normalised(first: Tensor, second: Tensor) -> Tensor:
    assert first.shape == second.shape, f"views of shape {tuple(first.shape)} and {tuple(second.shape)}"
    return F.normalize(torch.stack([first, second]).float(), dim=2)


class _Contrastive(torch.autograd.Function):
    """Loss of normalised rows (view, batch, dim); forms its gradient in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        mine: Tensor,
        temperature: float | Tensor,  # one, or one a clip
        form: Form,
        log_u: Tensor | None,
        gamma: float,
        chunk: int | None,
        world: World,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        z = world.gather(mine).flatten(0, 1)  # views of clip i are rows i and i + batch
        rows = len(z)
        given = {"form": form, "temperature": temperature, "average": None if log_u is None else (log_u, gamma)}
        learned = isinstance(temperature, Tensor)
        with torch.autocast(z.device.type, enabled=False):
            if world.size == 1 and not learned and temperature >= _MILD:
                found, gradient = _by_half(z, **given, side=chunk or _SIDE.get(z.device.type, 1024))
            else:
                found, gradient = _by_rows(z, world, **given, chunk=chunk or _rows_at_once(rows, z.device.type))
        normaliser, near, top1, slope = found.unflatten(1, (2, -1))
        if form == "sogclr":
            normaliser = normaliser - _log_others(rows)
        losses = (normaliser - near) * (2 * temperature if form == "sogclr" else 1.0)
        loss, top1, slope_mean = world.sum(torch.stack([losses.sum(), top1.sum(), slope.sum()])).div_(rows).unbind()
        gradient = world.sum_mine(gradient.view(2, rows // 2, -1))
        gradient = gradient.mul_(2 / rows) if form == "sogclr" else gradient.div_(rows * temperature)
        ctx.save_for_backward(gradient, -slope_mean / temperature**2 / world.size if _is_one(temperature) else None)
        weighted = slope / temperature + near if learned else None
        ctx.mark_non_differentiable(top1, normaliser, *([weighted] if learned else []))
        return loss, top1, normaliser, weighted

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, of_temperature = ctx.saved_tensors
        return grad * gradient, None if of_temperature is None else grad * of_temperature, *[None] * 5


def _rows_at_once(rows: int, device: str) -> int:
    return max(_LEAST_ROWS.get(device, 64), _CHUNK_NUMBERS.get(device, 1 << 22) // rows)


def _log_others(rows: int) -> float:
    """Return the log of how many rows the other clips have; of 1 where a clip is alone and nothing means anything."""
    return math.log(max(rows - 2, 1))


def _is_one(temperature: float | Tensor) -> bool:
    """Say whether it is a tensor for all clips, whose gradient may be asked for."""
    return isinstance(temperature, Tensor) and temperature.ndim == 0


def _averaged(normaliser: Tensor, log_u: Tensor, gamma: float, rows: int) -> Tensor:
    """Return SogCLR's normaliser, the moving average, where the sum over this batch has the logarithm `normaliser`."""
    log_u = log_u + _log_others(rows)
    old = log_u + (math.log1p(-gamma) if gamma < 1 else -math.inf)
    return torch.where(log_u.isinf(), normaliser, torch.logaddexp(old, normaliser + math.log(gamma)))


# Both ways return four numbers of each anchor (4, anchor): the log of its normaliser; its positive's similarity;
# whether that is nearer than all others; and, where a temperature is learned, the sum of its cosines, each weighted as
# in the gradient. And they return the gradient of all rows, which is yet to be scaled.


def _by_half(
    z: Tensor, *, form: Form, temperature: float, average: tuple[Tensor, float] | None, side: int
) -> tuple[Tensor, Tensor]:
    """Form the half above the diagonal twice, for the normalisers and then for the gradient of both its sides.

    That is two full products; by rows it takes three. What is subtracted before the exponential must be the same on
    both sides: 1 / tau, which no similarity exceeds.
    """
    rows = len(z)
    sums, near, top = z.new_zeros(rows), z.new_empty(rows), z.new_full((rows,), -torch.inf)
    for block in _blocks(rows // 2, side):
        s, positive = _similarities(z, block, temperature)
        if block.opposite:
            near[block.row] = near[block.column] = positive
        top[block.row] = torch.maximum(top[block.row], s.amax(1))
        top[block.column] = torch.maximum(top[block.column], s.amax(0))
        sums[block.row] += s.exp_().sum(1)
        if not block.diagonal:
            sums[block.column] += s.sum(0)
    if form == "ntxent":
        sums += near.exp()
    normaliser = sums.log()
    if average is not None:
        normaliser = _averaged(normaliser + 1 / temperature, average[0].repeat(2), average[1], rows) - 1 / temperature
    # d loss / d s, of both anchors of a pair: a softmax each (but for SogCLR), less one at the positive
    share = normaliser.neg().exp_()
    opposite = z.roll(rows // 2, 0)
    gradient = opposite * -2.0
    if form == "ntxent":
        gradient.addcmul_((near.exp() * (share + share.roll(rows // 2, 0)))[:, None], opposite)
    for block in _blocks(rows // 2, side):
        s, _ = _similarities(z, block, temperature)
        weight = s.exp_().mul_(share[block.row, None] + share[block.column])
        gradient[block.row].addmm_(weight, z[block.column])
        if not block.diagonal:
            gradient[block.column].addmm_(weight.T, z[block.row])
    found = [normaliser + 1 / temperature, near + 1 / temperature, (near > top).float(), torch.zeros_like(near)]
    return torch.stack(found), gradient


@dataclass(frozen=True)
class _Block:
    """A part of the square. On its own diagonal, each row meets itself (`diagonal`) or its positive (`opposite`)."""

    row: slice
    column: slice
    diagonal: bool
    opposite: bool


def _blocks(batch: int, side: int) -> Iterator[_Block]:
    """Cut the half of the square (2 batch, 2 batch) above the diagonal into blocks, each within one view."""
    inside = [slice(start, min(start + side, batch)) for start in range(0, batch, side)]
    parts = inside + [slice(part.start + batch, part.stop + batch) for part in inside]
    for i, row in enumerate(parts):
        for j, column in enumerate(parts[i:], start=i):
            yield _Block(row, column, diagonal=j == i, opposite=j - i == len(inside))


def _similarities(z: Tensor, block: _Block, temperature: float) -> tuple[Tensor, Tensor]:
    """Return a block's similarities less 1 / tau, -inf where a clip meets itself, and its diagonal as it was."""
    s = ((z[block.row] / temperature) @ z[block.column].T).sub_(1 / temperature)
    diagonal = s.diagonal().clone()
    if block.diagonal or block.opposite:
        s.fill_diagonal_(-torch.inf)
    return s, diagonal


def _by_rows(
    z: Tensor,
    world: World,
    *,
    form: Form,
    temperature: float | Tensor,
    average: tuple[Tensor, float] | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Form whole rows, this rank's, once, each with its part of the gradient."""
    rows, local = len(z), len(z) // 2 // world.size
    chunk = min(local, chunk)
    found, gradient = z.new_empty(4, 2, local), torch.zeros_like(z)
    for view in range(2):
        first = view * (rows // 2) + world.rank * local
        for start in range(0, local, chunk):
            part = slice(start, min(start + chunk, local))
            found[:, view, part] = _rows(
                z,
                slice(first + part.start, first + part.stop),
                gradient,
                form=form,
                temperature=_of(temperature, part),
                average=None if average is None else (average[0][part], average[1]),
            )
    return found.flatten(1), gradient


def _of(temperature: float | Tensor, part: slice) -> float | Tensor:
    return temperature[part, None] if isinstance(temperature, Tensor) and temperature.ndim else temperature


def _rows(
    z: Tensor,
    part: slice,
    gradient: Tensor,
    *,
    form: Form,
    temperature: float | Tensor,
    average: tuple[Tensor, float] | None,
) -> Tensor:
    """Add some rows' part to the gradient, and return their four numbers."""
    rows = len(z)
    anchors = z[part]
    number = torch.arange(part.start, part.stop, device=z.device)
    own, positive = number[:, None], ((number + rows // 2) % rows)[:, None]
    s = (anchors / temperature) @ z.T
    near = s.gather(1, positive)
    s.scatter_(1, own, -torch.inf).scatter_(1, positive, -torch.inf)
    top = s.amax(1, keepdim=True)
    retrieved = near > top
    if form == "ntxent":
        s.scatter_(1, positive, near)
        top = torch.maximum(top, near)
    s.sub_(top).exp_()  # in place and once: exponentials and fresh memory are what a chunk spends beside its products
    normaliser = s.sum(1, keepdim=True).log_() + top
    if average is not None:
        normaliser = _averaged(normaliser, average[0][:, None], average[1], rows)
    # d loss / d s: the weight of every allowed row (a softmax, but for SogCLR), less one at the positive
    weight = s.mul_((top - normaliser).exp_()).scatter_add_(1, positive, torch.full_like(near, -1.0))
    pull = weight @ z
    gradient[part] += pull
    gradient.addmm_(weight.T, anchors)
    return torch.stack([normaliser[:, 0], near[:, 0], retrieved[:, 0], (anchors * pull).sum(1)])
