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
    numbers = Step(model, loss, **options)(views)
    return {k: v.item() for k, v in numbers.items()}, {n: p.grad for n, p in model.named_parameters()}


def assert_equal(a, b, *, within=1e-5):
    assert a[0] == pytest.approx(b[0], abs=within)
    size = max(g.abs().max() for g in b[1].values())
    for name, wanted in b[1].items():
        torch.testing.assert_close(a[1][name], wanted, rtol=within, atol=within * size.item(), msg=name)


PATCHES = ["square", "vertical", "square,vertical"]


@pytest.mark.parametrize("patches", PATCHES)
@pytest.mark.parametrize("form", ["paper", "ntxent"])
@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12, 100])
def test_micro_batches_have_the_undivided_batchs_gradient(store, patches, form, micro_batch):
    config, views = views_of(store, patches)
    whole = gradient(config, views, loss=LossConfig(loss=form))
    assert_equal(gradient(config, views, loss=LossConfig(loss=form), micro_batch=micro_batch), whole)


def test_both_kinds_in_one_pass_have_the_same_gradient(store):
    config, views = views_of(store, "square,vertical")
    one_by_one = gradient(config, views)
    assert_equal(gradient(config, views, together=True), one_by_one)
    assert_equal(gradient(config, views, together=True, micro_batch=5), one_by_one)


def test_kinds_with_unequal_token_counts_take_a_pass_each(store):
    config, views = views_of(store, "square,vertical")
    fewer = views["vertical"]
    views["vertical"] = type(fewer)(fewer.patches[:, :, :3], fewer.tokens[:, :, :3])
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
views = {
    kind: Views(torch.rand(2, 12, 5, 256, generator=draw), torch.randint(0, 48, (2, 12, 5), generator=draw))
    for kind in config.patches
}
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
