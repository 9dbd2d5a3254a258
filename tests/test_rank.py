"""Several processes: the same loss, gradient and run as one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from myna import recipe
from myna.checkpoint import checkpoints, open_checkpoint
from myna.errors import ConfigError
from myna.rank import SOLO, World
from myna.run import read_metrics
from myna.train import Trainer
from stores import make_store, random_mels

TINY = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64, "batch": 12, "log_every": 1}
TINY |= {"precision": "fp32", "micro_batch": "off", "learning_rate": 1e-3}

PATIENCE_S = "90"  # of a rank with others that are slow to start on a crowded machine

# one process of several: the gradient of one step for every case, then a short run
GRADIENTS = """
import itertools, sys, torch
from myna import recipe
from myna.model import MynaModel
from myna.rank import join
from myna.step import Step
from myna.store import Store
from myna.view import Loader
torch.set_num_threads(1)
LOSSES = {
    "shared": {"loss": "sogclr", "sogclr_shared": True},
    "individual": {"loss": "sogclr", "sogclr_individual": True},
    "learned": {"learn_temperature": True},
}
store, out, base = Store.open(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
found = {}
with join(torch.device("cpu")) as world:
    cases = [*itertools.product(("square", "vertical", "square,vertical"), ("paper", "ntxent"), (None, 1))]
    cases += itertools.product(("square,vertical",), ("sogclr", "shared", "individual", "learned"), (None, 1))
    for patches, form, micro in cases:
        s = recipe.override(recipe.get("tiny"), {**base, "patches": patches, **LOSSES.get(form, {"loss": form})})
        model = MynaModel(s.model)
        loader = Loader(store, s.view, s.model.grids(), batch=12, seed=0, slice_=world.share(12))
        step = Step(model, s.loss, micro_batch=micro, world=world, clips=24)
        steps = [3, 4, 5] if s.loss.loss == "sogclr" else [3]  # the last sees clips of the first
        for number in steps:
            numbers = step(loader(number))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        state = dict(step.loss.named_buffers())
        state |= {name: value.grad for name, value in step.loss.named_parameters()}
        found[patches, form, micro] = {**numbers, **state, "gradient": gradient}
    if world.is_main:
        torch.save({"|".join(map(str, k)): v for k, v in found.items()}, out)
"""

TRAIN = """
import sys, torch
torch.set_num_threads(1)
from myna.cli import main
main(sys.argv[1:])
"""


# ranks of which first one fails to connect, then the other
CONNECT = """
import sys, torch
import torch.distributed as dist
from myna.rank import join
real, calls = dist.init_process_group, []

def failing(*arguments, rank, **options):
    calls.append(rank)
    if len(calls) == 1 and rank == 0:  # which leaves the other waiting
        raise RuntimeError("Gloo connectFullMesh failed")
    real(*arguments, rank=rank, **options)
    if len(calls) == 2 and rank == 1:  # the other one is connected
        dist.destroy_process_group()
        raise RuntimeError("Gloo connectFullMesh failed")

dist.init_process_group = failing
with join(torch.device("cpu")) as world:
    total = world.sum(torch.tensor(10.0 ** world.rank))
    if world.is_main:
        print(total.item(), len(calls))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("rank") / "store", random_mels(24, 130))


# restarts: on a crowded machine gloo now and then fails to connect its ranks; torchrun's answer is to start them again
def torchrun(ranks: int, code: str, *arguments, tmp_path, restarts: int = 8) -> list[str]:
    script = tmp_path / f"script{abs(hash(code)) % 10**6}.py"
    script.write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, f"--max-restarts={restarts}", str(script), *map(str, arguments)]


def run(command: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MYNA_PATIENCE_S": PATIENCE_S}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)


def test_ranks_that_fail_to_connect_try_again_together(tmp_path):
    ran = run(torchrun(2, CONNECT, tmp_path=tmp_path, restarts=0))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == ["11.0", "3"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_loss_and_gradient_equal_one_ranks(store, tmp_path, ranks):
    ran = run(torchrun(ranks, GRADIENTS, store.path, tmp_path / "many.pt", repr(TINY), tmp_path=tmp_path))
    assert ran.returncode == 0, ran.stderr[-3000:]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MYNA_PATIENCE_S": PATIENCE_S}
    command = [sys.executable, "-c", GRADIENTS, str(store.path), str(tmp_path / "one.pt"), repr(TINY)]
    subprocess.run(command, check=True, env=alone)
    one, many = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "many.pt"))
    assert len(one) == len(many) == 20
    for case, wanted in one.items():
        for name, value in wanted.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(many[case][name], value, rtol=1e-5, atol=1e-5 * scale, msg=f"{case} {name}")


def pretrain(store, out, changes, *more) -> list[str]:
    flags = [part for name, value in changes.items() for part in (f"--{name.replace('_', '-')}", value)]
    return ["pretrain", store.path, "-o", out, "--recipe", "tiny", "--device", "cpu", *flags, *more]


def test_a_run_of_two_ranks_is_the_run_of_one_and_resumes_with_three(store, tmp_path):
    changes = {**TINY, "steps": 8}
    Trainer(store, tmp_path / "one", recipe.override(recipe.get("tiny"), changes)).train()
    half = torchrun(2, TRAIN, *pretrain(store, tmp_path / "many", {**TINY, "steps": 4}), tmp_path=tmp_path)
    ran = run(half)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stderr.count("holds the model after 4 steps") == 1  # only one rank speaks
    rest = torchrun(3, TRAIN, *pretrain(store, tmp_path / "many", changes, "--resume"), tmp_path=tmp_path)
    ran = run(rest)
    assert ran.returncode == 0, ran.stderr[-3000:]
    one, many = (read_metrics(tmp_path / name) for name in ("one", "many"))
    assert [row["step"] for row in many] == list(range(1, 9))
    assert [row["loss"] for row in many] == pytest.approx([row["loss"] for row in one], abs=1e-4)
    weights = [open_checkpoint(tmp_path / name).model().state_dict() for name in ("one", "many")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-4)


def children_of(process) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def kill_a_rank_after_some_steps(process, folder, *, number: int = 1) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(sorted(children_of(process))[number], signal.SIGKILL)


def test_a_rank_that_dies_ends_the_job_and_the_last_checkpoint_stands(store, tmp_path):
    changes = {**TINY, "steps": 100_000, "checkpoint_minutes": 0.005}
    command = torchrun(2, TRAIN, *pretrain(store, tmp_path / "run", changes), tmp_path=tmp_path, restarts=0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MYNA_PATIENCE_S": PATIENCE_S}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    kill_a_rank_after_some_steps(process, tmp_path / "run")
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in said or "Another rank stopped answering" in said
    step = open_checkpoint(tmp_path / "run").step
    assert step > 0
    settings = recipe.override(recipe.get("tiny"), {**changes, "steps": step + 1})
    again = Trainer(store, tmp_path / "run", settings, resume=True)
    assert again.step == step
    again.train()


def test_torchruns_restart_goes_on_with_the_run(store, tmp_path):
    changes = {**TINY, "steps": 150, "checkpoint_minutes": 0.002}
    command = torchrun(2, TRAIN, *pretrain(store, tmp_path / "run", changes), tmp_path=tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MYNA_PATIENCE_S": PATIENCE_S}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    kill_a_rank_after_some_steps(process, tmp_path / "run")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    assert "are done" in said  # the plan of the second start
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 151))


def test_shares_are_even_and_complete():
    rows = [i for rank in range(3) for i in range(12)[World(rank, 3).share(12)]]
    assert rows == list(range(12))
    assert SOLO.share(5) == slice(0, 5)
    with pytest.raises(ConfigError, match="cannot be shared evenly by 3 ranks"):
        World(0, 3).share(10)
