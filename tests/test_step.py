import subprocess
import sys

import pytest
import torch

from myna import recipe
from myna.loss import LossConfig
from myna.model import MynaModel
from myna.step import Step
from myna.view import Loader
from stores import make_store, random_mels

TINY = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("step") / "store", random_mels(12, 130))


def views_of(store, patches, batch=12):
    settings = recipe.override(recipe.get("tiny"), {**TINY, "patches": patches})
    return settings.model, Loader(store, settings.view, settings.model.grids(), batch=batch, seed=0)(0)


def gradient(config, views, **options) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = MynaModel(config)
    loss = options.pop("loss", LossConfig())
    step = Step(model, loss, clips=12, **options)
    if loss.loss == "sogclr":  # as if half of the clips were seen before
        for number, averages in enumerate(step.loss.averages.values()):
            averages.log_u[: 6 + number] = torch.linspace(3.0, 8.0, 6 + number)
    numbers = step(views)
    found = {k: v.item() for k, v in numbers.items()}
    gradients = {n: p.grad for n, p in [*model.named_parameters(), *step.loss.named_parameters()]}
    return found, gradients | dict(step.loss.named_buffers())


def assert_equal(a, b, *, within=1e-5):
    assert a[0] == pytest.approx(b[0], abs=within)
    assert a[1].keys() == b[1].keys()
    size = max(g.abs().max().item() for name, g in b[1].items() if not name.startswith("averages"))
    for name, wanted in b[1].items():  # averages are made of similarities, which go up to 1 / 0.1
        scale = 10.0 if name.startswith("averages") else size
        torch.testing.assert_close(a[1][name], wanted, rtol=within, atol=within * scale, msg=name)


PATCHES = ["square", "vertical", "square,vertical"]
LOSSES = {
    "paper": LossConfig(),
    "ntxent": LossConfig(loss="ntxent"),
    "learned": LossConfig(learn_temperature=True),
    "sogclr": LossConfig(loss="sogclr"),
    "shared": LossConfig(loss="sogclr", sogclr_shared=True),
    "individual": LossConfig(loss="sogclr", sogclr_individual=True),
}


@pytest.mark.parametrize("patches", PATCHES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 5, 12, 100])
def test_micro_batches_have_the_undivided_batchs_gradient(store, patches, loss, micro_batch):
    config, views = views_of(store, patches)
    whole = gradient(config, views, loss=LOSSES[loss])
    assert_equal(gradient(config, views, loss=LOSSES[loss], micro_batch=micro_batch), whole)


@pytest.mark.parametrize("loss", LOSSES)
def test_both_kinds_in_one_pass_have_the_same_gradient(store, loss):
    config, views = views_of(store, "square,vertical")
    one_by_one = gradient(config, views, loss=LOSSES[loss])
    assert_equal(gradient(config, views, loss=LOSSES[loss], together=True), one_by_one)
    assert_equal(gradient(config, views, loss=LOSSES[loss], together=True, micro_batch=5), one_by_one)


def test_the_step_tells_the_loss_which_clips_it_sees(store):
    settings = recipe.override(recipe.get("tiny"), {**TINY, "patches": "square"})
    loader = Loader(store, settings.view, settings.model.grids(), batch=4, seed=0)
    step = Step(MynaModel(settings.model), LOSSES["sogclr"], clips=12)
    for number in range(3):  # an epoch: each clip once
        step(loader(number))
        seen = step.loss.averages["square"].log_u.isfinite().nonzero().flatten().tolist()
        drawn = torch.cat([loader.clip_numbers(n) for n in range(number + 1)])
        assert seen == sorted(drawn.tolist())
    assert seen == list(range(12))


def test_kinds_with_unequal_token_counts_take_a_pass_each(store):
    config, views = views_of(store, "square,vertical")
    fewer = views["vertical"]
    views["vertical"] = type(fewer)(fewer.patches[:, :, :3], fewer.tokens[:, :, :3], fewer.clips)
    assert_equal(gradient(config, views, together=True), gradient(config, views))


def test_a_compiler_that_fails_falls_back_and_says_why(store, monkeypatch):
    config, views = views_of(store, "square")
    step = Step(MynaModel(config), LossConfig(), compile="default")

    def broken(*_):
        raise RuntimeError("no compiler found\nlong story")

    monkeypatch.setattr(step, "model", broken)
    step(views)
    assert step.why_not_compiled == "RuntimeError: no compiler found"
    assert_equal(gradient(config, views), ({k: v.item() for k, v in step(views).items()}, gradient(config, views)[1]))


# in a process of its own: the checker of shapes would be compiled along
COMPILED = """
import torch
from myna.loss import LossConfig
from myna.model import ModelConfig, MynaModel
from myna.step import Step
from myna.view import Views

torch.set_num_threads(1)
small = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64}
config = ModelConfig(patches=("square", "vertical"), **small)
draw = torch.Generator().manual_seed(0)
drawn = {
    kind: (torch.rand(2, 12, 5, 256, generator=draw), torch.randint(0, 48, (2, 12, 5), generator=draw))
    for kind in config.patches
}
views = {kind: Views(patches, tokens, torch.arange(12)) for kind, (patches, tokens) in drawn.items()}
for how, micro_batch in (("sums", None), ("products", 6)):
    found = []
    for mode in ("off", "default"):
        model = MynaModel(config)
        model.encoder.attend_by(how)
        step = Step(model, LossConfig(), compile=mode, together=True, micro_batch=micro_batch)
        loss = step(views)["loss"]
        assert not step.why_not_compiled, step.why_not_compiled
        found.append(torch.cat([loss[None], *(p.grad.flatten() for p in model.parameters())]))
    apart = (found[0] - found[1]).abs().max() / found[0].abs().max()
    print(how, micro_batch, apart.item())
    assert apart < 1e-5
"""


def test_a_compiled_step_has_the_same_gradient():
    ran = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(ran.stdout.splitlines()) == 2
