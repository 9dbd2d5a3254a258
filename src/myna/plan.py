"""What a run is going to do and need, before it does it: counts, memory, and choices that fit the machine."""

import math
import time
from dataclasses import dataclass

import torch

from myna.device import free_bytes
from myna.patch import patch_of
from myna.rank import World
from myna.run import Settings
from myna.view import VIEWS
from myna.vit import ATTENTION


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, before it does it. Times come from a short measurement."""

    parameters: int
    visible: dict[str, tuple[int, int]]  # kind → (visible, all) tokens of a view
    clips: int
    tracks: int
    hours: float
    steps_per_epoch: int
    steps: int
    device: str
    precision: str
    memory_bytes: int
    store_on: str
    store_bytes: int
    micro_batch: int | str
    passes: int  # that micro-batches take
    compile: str
    ranks: int
    seconds_per_step: float


def memory_estimate(
    settings: Settings,
    *,
    precision: str,
    parameters: int,
    clips: int,
    together: bool,
    ranks: int,
) -> int:
    """Estimate the peak bytes of a step on one rank: weights, gradients, Adam, the rank's share of the batch's patches
    (two steps' of them), and the activations of `clips` clips.
    """
    model, visible, size = settings.model, settings.visible(), 2 if precision == "bf16" else 4
    tokens = clips * VIEWS * (sum(visible.values()) if together else max(visible.values()))
    activations, read = tokens * _kept_bytes(**model.encoder(), size=size), visible
    if model.decoder_depth:  # which sees every token, as the loader reads every patch
        read = {kind: grid.tokens for kind, grid in model.grids().items()}
        tokens = clips * VIEWS * (sum(read.values()) if together else max(read.values()))
        activations += tokens * _kept_bytes(**model.decoder(), size=size)
    crops = settings.train.batch // ranks * VIEWS
    patches = sum(crops * count * patch_of(kind).values * 4 for kind, count in read.items())
    return 16 * parameters + activations + 2 * patches


def _block_weights(*, dim: int, depth: int, heads: int, head_dim: int, mlp_dim: int) -> int:
    return depth * dim * (4 * heads * head_dim + 2 * mlp_dim)


def _kept_bytes(*, dim: int, depth: int, heads: int, head_dim: int, mlp_dim: int, size: int) -> int:
    """Return what a token keeps for the backward pass, over all blocks, in numbers of `size` bytes."""
    kept = 5 * dim + 4 * heads * head_dim + 2 * mlp_dim
    residual = 2 * dim * (4 - size)  # the residual stream and norms stay float32
    return depth * (kept * size + residual)


def fitting_micro_batch(settings: Settings, *, precision: str, device: torch.device, world: World) -> int:
    """Return how many clips fit at once by the estimate, or 0 if this rank's whole share of the batch does."""
    local = settings.train.batch // world.size
    free = free_bytes(device) // (world.size if device.type == "cpu" else 1)
    together = device.type == "cuda" or world.size > 1
    model = settings.model
    parameters = _block_weights(**model.encoder()) + (_block_weights(**model.decoder()) if model.decoder_depth else 0)
    clips = local
    while clips > 1 and 0.8 * free < memory_estimate(
        settings,
        precision=precision,
        parameters=parameters,
        clips=clips,
        together=together,
        ranks=world.size,
    ):
        clips = -(-clips // 2)
    return 0 if clips == local else clips


def pick_attention(settings: Settings, device: torch.device, precision: str, compiled: str) -> str:
    """Return the fastest form of attention for the visible tokens, forward and backward, measured as it will run."""
    model, tokens = settings.model, max(settings.visible().values())
    shape = (min(settings.train.batch, 4096) * VIEWS, tokens, 3, model.heads, model.head_dim)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    qkv = torch.randn(shape, device=device, dtype=kind, requires_grad=True)

    def seconds(how: str) -> float:
        attend = ATTENTION[how] if compiled == "off" else torch.compile(ATTENTION[how], dynamic=False)
        best = math.inf
        for _ in range(8):
            begin = time.perf_counter()
            attend(*qkv.permute(2, 0, 3, 1, 4)).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begin)
        return best

    try:
        return min(ATTENTION, key=seconds)
    except (RuntimeError, torch.OutOfMemoryError):  # no compiler, or no room: the safe form
        return "sdpa"
