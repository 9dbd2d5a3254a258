"""One step's gradient: views become projections, projections a loss, the loss a gradient (Algorithm 1)."""

import torch
from torch import Tensor

from myna.loss import LossConfig, contrastive
from myna.model import MynaModel
from myna.patch import Kind
from myna.view import VIEWS, Views


def forward_backward(
    model: MynaModel, views: dict[Kind, Views], loss: LossConfig, *, precision: str
) -> dict[str, Tensor]:
    """Add the gradient of one step, each patch kind on its own pass, and return the step's numbers.

    The loss of a hybrid is the mean of its kinds' (section 3.6); going backward after each keeps one graph at a time.
    """
    numbers: dict[str, Tensor] = {}
    for kind, view in views.items():
        device = view.patches.device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            z = model(kind, view.patches.flatten(0, 1), view.tokens.flatten(0, 1)).float()
        value, top1 = contrastive(*z.chunk(VIEWS), form=loss.loss, temperature=loss.temperature)
        (value / len(views)).backward()
        numbers[f"loss_{kind}"], numbers[f"top1_{kind}"] = value.detach(), top1
    for name in ("loss", "top1"):
        numbers[name] = torch.stack([numbers[f"{name}_{kind}"] for kind in views]).mean()
    return numbers
