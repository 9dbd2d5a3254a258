"""Which contrastive loss a run descends, and what it learns and remembers from step to step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from myna.contrast import Form, contrastive, sogclr
from myna.patch import Kind
from myna.rank import SOLO, World

LEARNED_BOUNDS = 0.01, 1.0  # CLIP's, of its learned temperature (arXiv 2103.00020)
# iSogCLR's, of a clip's own temperature, and its momentum (arXiv 2305.11965, as its authors' library has them)
INDIVIDUAL_BOUNDS, INDIVIDUAL_MOMENTUM = (0.05, 0.7), 0.9


class LossConfig(BaseModel):
    """Which contrastive loss, and how sharp."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: Form = Field(
        "paper", description="paper: positive pair not in the denominator; ntxent: SimCLR's; sogclr: the release's"
    )
    temperature: float = Field(0.1, gt=0, description="temperature tau of the similarities; where learned, the first")
    learn_temperature: bool = Field(False, description="learn one temperature, 0.01 to 1, with paper or ntxent")
    sogclr_gamma: float = Field(0.9, gt=0, le=1, description="weight of this step in sogclr's moving averages")
    sogclr_shared: bool = Field(False, description="let both patch kinds of a hybrid share one average, as the release")
    sogclr_individual: bool = Field(False, description="learn a temperature for each clip, 0.05 to 0.7 (iSogCLR)")
    sogclr_rho: float = Field(0.3, ge=0, description="iSogCLR's rho: more makes the clips' temperatures lower")
    sogclr_rate: float = Field(0.01, gt=0, description="iSogCLR's step size of the clips' temperatures")

    @field_validator("learn_temperature")
    @classmethod
    def _one_temperature(cls, value: bool, info: Any) -> bool:
        if value and info.data.get("loss") == "sogclr":
            raise ValueError("sogclr learns temperatures by clip: take sogclr_individual")
        return _inside(value, info, LEARNED_BOUNDS)

    @field_validator("sogclr_shared", "sogclr_individual")
    @classmethod
    def _sogclr_only(cls, value: bool, info: Any) -> bool:
        if value and info.data.get("loss") != "sogclr":
            raise ValueError(f"it needs loss sogclr, not {info.data.get('loss')}")
        return _inside(value, info, INDIVIDUAL_BOUNDS) if info.field_name == "sogclr_individual" else value


def _inside(learned: bool, info: Any, bounds: tuple[float, float]) -> bool:
    temperature = info.data.get("temperature", bounds[0])
    if learned and not bounds[0] <= temperature <= bounds[1]:
        raise ValueError(f"it must begin at a temperature from {bounds[0]} to {bounds[1]}, not at {temperature}")
    return learned


class Averages(nn.Module):
    """What SogCLR keeps of every clip of the store from step to step, float32.

    `log_u` (clip,): the logarithm of its moving average, -inf until it was seen. With individual temperatures (iSogCLR)
    also `temperature` (clip,) and `momentum` (clip,), the running mean of the temperature's gradient.
    """

    def __init__(self, config: LossConfig, clips: int, world: World = SOLO) -> None:
        super().__init__()
        self.config, self.world = config, world
        self.register_buffer("log_u", torch.full((clips,), -torch.inf))
        if config.sogclr_individual:
            self.register_buffer("temperature", torch.full((clips,), config.temperature))
            self.register_buffer("momentum", torch.zeros(clips))

    def forward(
        self, first: Float[Tensor, "batch dim"], second: Float[Tensor, "batch dim"], clips: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the loss and its numbers, and remember what this step finds of these clips."""
        # every rank keeps all clips, so that any of them can write the checkpoint, and another number resume
        everybody = self.world.gather(clips[None, :, None]).flatten()
        own = self.config.sogclr_individual
        temperature = self.temperature[clips] if own else self.config.temperature
        found = sogclr(
            first,
            second,
            log_u=self.log_u[clips],
            gamma=self.config.sogclr_gamma,
            temperature=temperature,
            world=self.world,
        )
        loss, numbers = found.loss, {"top1": found.top1}
        news = {"log_u": torch.logaddexp(*found.log_u) - math.log(2)}  # the mean of the two anchors' averages
        if own:
            numbers["temperature"] = self.temperature[everybody].mean()
            loss = loss + 2 * self.config.sogclr_rho * numbers["temperature"]
            slope = (found.log_u - found.weighted).mean(0) + self.config.sogclr_rho  # d loss / d temperature
            news["momentum"] = torch.lerp(self.momentum[clips], slope, INDIVIDUAL_MOMENTUM)
            moved = temperature - self.config.sogclr_rate * news["momentum"]
            news["temperature"] = moved.clamp(*INDIVIDUAL_BOUNDS)
        for name, values in zip(news, self.world.gather(torch.stack([*news.values()])[..., None]), strict=True):
            self.get_buffer(name)[everybody] = values[:, 0]
        return loss, numbers


class ContrastiveLoss(nn.Module):
    """The loss of a run, with what it learns (one temperature) and remembers (SogCLR: its averages, by patch kind)."""

    def __init__(self, config: LossConfig, kinds: Sequence[Kind], *, clips: int = 0, world: World = SOLO) -> None:
        super().__init__()
        self.config, self.world = config, world
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        if config.loss == "sogclr":
            assert clips, "SogCLR keeps an average of every clip of the store: say how many there are"
            names = ["shared"] if config.sogclr_shared else kinds
            self.averages = nn.ModuleDict({name: Averages(config, clips, world) for name in names})

    def forward(
        self,
        first: Float[Tensor, "batch dim"],
        second: Float[Tensor, "batch dim"],
        *,
        kind: Kind,
        clips: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the loss of two views of `clips`, and numbers to log: loss, top1, and the temperature if it moves."""
        numbers: dict[str, Tensor] = {}
        if self.config.loss == "sogclr":
            loss, numbers = self.averages["shared" if self.config.sogclr_shared else kind](first, second, clips)
        else:
            temperature: float | Tensor = self.config.temperature
            if self.config.learn_temperature:
                with torch.no_grad():
                    self.log_temperature.clamp_(*map(math.log, LEARNED_BOUNDS))
                temperature = self.log_temperature.exp()
                numbers["temperature"] = temperature.detach()
            loss, numbers["top1"] = contrastive(
                first, second, form=self.config.loss, temperature=temperature, world=self.world
            )
        return loss, {"loss": loss.detach(), **numbers}
