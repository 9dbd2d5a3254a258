import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from myna import plan, recipe, train
from myna.about import describe
from myna.checkpoint import checkpoints, model_hash, open_checkpoint, save_model
from myna.device import pick_device, pick_precision
from myna.errors import CheckpointError, ConfigError, RunError
from myna.mae import build_model
from myna.model import MynaModel
from myna.rank import SOLO
from myna.run import read_metrics, read_run
from myna.step import Step
from myna.train import Trainer
from myna.view import Loader
from stores import make_store, random_mels

TINY = {
    "dim": 32,
    "depth": 1,
    "heads": 2,
    "head_dim": 16,
    "mlp_dim": 64,
    "batch": 8,
    "log_every": 2,
    "precision": "fp32",
}


SPEEDS = ("clips_per_s", "tokens_per_s", "tflops")


def settings(**changes):
    return recipe.override(recipe.get("tiny"), {**TINY, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("train") / "store", random_mels(30, 130))


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoints(run)[-1].glob("*.safetensors")}


INDIVIDUAL = {"loss": "sogclr", "sogclr_individual": True}


@pytest.mark.parametrize(
    "changes",
    [
        {"patches": "square"},
        {"patches": "vertical"},
        {"patches": "square,vertical"},
        {"loss": "sogclr"},
        {"loss": "sogclr", "sogclr_shared": True},
        INDIVIDUAL,
        {"learn_temperature": True},
        {"pair": "segment", "mask_policy": "complement"},
    ],
)
def test_2_x_10_steps_equal_20_bit_for_bit(store, tmp_path, changes):
    Trainer(store, tmp_path / "whole", settings(**changes, steps=20)).train()
    Trainer(store, tmp_path / "parts", settings(**changes, steps=10)).train()
    second = Trainer(store, tmp_path / "parts", settings(**changes, steps=20), resume=True)
    assert second.step == 10
    second.train()
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    keeps = changes.get("loss") == "sogclr" or "learn_temperature" in changes
    assert ("loss.safetensors" in files_of(tmp_path / "parts")) == keeps
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in SPEEDS} for row in read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert ours == theirs
    assert [row["step"] for row in ours] == list(range(2, 21, 2))


@pytest.mark.parametrize(
    ("changes", "falls"),  # SogCLR's loss is in cosines of both directions: 2 tau, here 0.2, times as large
    [({}, 1.0), ({"loss": "sogclr"}, 0.2), (INDIVIDUAL, 0.2), ({"loss": "ntxent", "learn_temperature": True}, 0.5)],
)
def test_training_learns_to_tell_tracks_apart(store, tmp_path, changes, falls):
    trainer = Trainer(store, tmp_path / "run", settings(**changes, steps=60, learning_rate=3e-3))
    trainer.train()
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] - falls
    assert rows[-1]["top1"] > 0.5  # chance is 1 in 15
    assert all(math.isfinite(row["grad_norm"]) for row in rows)


def test_a_learned_temperature_moves_without_weight_decay_and_is_logged(store, tmp_path):
    trainer = Trainer(store, tmp_path / "run", settings(steps=4, learn_temperature=True, weight_decay=1e3))
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [1e3, 0.0]
    trainer.train()
    logged = [row["temperature"] for row in read_metrics(tmp_path / "run")]
    assert logged[0] != logged[1]
    assert open_checkpoint(tmp_path / "run").loss().keys() == {"log_temperature"}
    assert "temperature" not in read_metrics(_trained(store, tmp_path / "other", steps=2))[0]


@pytest.mark.parametrize("changes", [INDIVIDUAL, {"learn_temperature": True}])
def test_a_checkpoint_without_the_losss_state_is_refused_by_name(store, tmp_path, changes):
    run = _trained(store, tmp_path / "run", steps=2, **changes)
    (checkpoints(run)[-1] / "loss.safetensors").unlink()
    missing = "averages.square.log_u is missing" if changes is INDIVIDUAL else "log_temperature is missing"
    with pytest.raises(CheckpointError, match=rf"loss\.safetensors do not fit.*{missing}"):
        Trainer(store, run, settings(steps=4, **changes), resume=True)


def test_a_new_run_from_old_weights_forgets_the_averages(store, tmp_path):
    _trained(store, tmp_path / "run", steps=4, **INDIVIDUAL)
    second = Trainer(store, tmp_path / "second", settings(**INDIVIDUAL), init_from=tmp_path / "run")
    assert second.gradient.loss.averages["square"].log_u.isinf().all()


def _trained(store, run: Path, **changes) -> Path:
    Trainer(store, run, settings(**changes)).train()
    return run


def test_a_policy_that_does_not_fit_the_patches_is_said_before_the_run(store, tmp_path):
    with pytest.raises(ConfigError, match="make one row only"):
        Trainer(store, tmp_path / "run", settings(mask_policy="frequency"))
    assert not (tmp_path / "run").exists()


def test_hybrid_gradient_is_the_mean_of_both_kinds(store):
    model = MynaModel(settings().model)
    loader = Loader(store, settings().view, settings().model.grids(), batch=8, seed=0)
    views = loader(0)
    gradients = {}
    for kinds in (("square",), ("vertical",), ("square", "vertical")):
        model.zero_grad()
        numbers = Step(model, settings().loss)({k: views[k] for k in kinds})
        gradients[kinds] = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    assert numbers["loss"] == (numbers["loss_square"] + numbers["loss_vertical"]) / 2
    for a, b, both in zip(*gradients.values(), strict=True):
        mean = sum(g for g in (a, b) if g is not None) / 2
        torch.testing.assert_close(both, mean)


def test_a_run_is_never_overwritten_by_accident(store, tmp_path):
    Trainer(store, tmp_path / "run", settings(steps=2)).train()
    with pytest.raises(RunError, match=r"--resume.*--init-from"):
        Trainer(store, tmp_path / "run", settings(steps=2))
    with pytest.raises(RunError, match="no run"):
        Trainer(store, tmp_path / "other", settings(), resume=True)
    with pytest.raises(RunError, match="give one of them"):
        Trainer(store, tmp_path / "run", settings(), resume=True, init_from=tmp_path / "run")


def test_nobodys_files_are_touched(store, tmp_path):
    mine = tmp_path / "home"
    (mine / "sub").mkdir(parents=True)
    (mine / "sub" / ".thesis.tex.part").write_text("precious")
    with pytest.raises(RunError, match="holds other files and no run"):
        Trainer(store, mine, settings(steps=2))
    run = tmp_path / "run"
    Trainer(store, run, settings(steps=2)).train()
    (run / ".notes.part").write_text("mine")
    (run / ".run.json.123.part").write_text("left by a kill")
    Trainer(store, run, settings(steps=3), resume=True).train()
    assert (run / ".notes.part").exists()
    assert not (run / ".run.json.123.part").exists()
    assert (mine / "sub" / ".thesis.tex.part").read_text() == "precious"


def test_resume_keeps_what_decides_the_result(store, tmp_path):
    Trainer(store, tmp_path / "run", settings(steps=2)).train()
    with pytest.raises(RunError, match=r"began with temperature 0\.1, and 0\.5 was given"):
        Trainer(store, tmp_path / "run", settings(steps=4, temperature=0.5), resume=True)
    other = make_store(tmp_path / "store", random_mels(31, 130))
    with pytest.raises(RunError, match="is not what the run began with"):
        Trainer(other, tmp_path / "run", settings(steps=4), resume=True)


def test_init_from_takes_the_weights_and_nothing_else(store, tmp_path):
    first = Trainer(store, tmp_path / "first", settings(steps=4))
    first.train()
    second = Trainer(store, tmp_path / "second", settings(steps=4, seed=9), init_from=tmp_path / "first")
    assert model_hash(second.model) == first.hash
    assert second.step == 0
    with pytest.raises(ConfigError, match="differs from this run's in dim"):
        Trainer(store, tmp_path / "third", settings(dim=64), init_from=tmp_path / "first")


class Killed(BaseException):
    """What a test raises where a real run would be killed."""


def _kill(_) -> None:
    raise Killed


@pytest.mark.parametrize("changes", [{}, INDIVIDUAL, {"learn_temperature": True}])
def test_a_run_from_weights_killed_before_its_first_checkpoint_goes_on_from_them(store, tmp_path, changes):
    first, second = _trained(store, tmp_path / "first", steps=2), settings(**changes, steps=6, seed=9)
    Trainer(store, tmp_path / "whole", second, init_from=first).train()
    with pytest.raises(Killed):
        Trainer(store, tmp_path / "parts", second, init_from=first).train(on_log=_kill)
    shutil.rmtree(first)
    resumed = Trainer(store, tmp_path / "parts", second, resume=True)
    assert resumed.step == 0
    resumed.train()
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_run_from_weights_is_never_resumed_without_them(store, tmp_path):
    first, run = _trained(store, tmp_path / "first", steps=2), tmp_path / "run"
    Trainer(store, run, settings(steps=4, seed=9), init_from=first).train()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match=r"began from weights .* no checkpoint of them.*--init-from"):
        Trainer(store, run, settings(steps=4, seed=9), resume=True)


def test_a_run_remembers_whose_weights_it_began_from(store, tmp_path):
    first = _trained(store, tmp_path / "first", steps=2)
    Trainer(store, tmp_path / "run", settings(steps=2), init_from=first).train()
    Trainer(store, tmp_path / "run", settings(steps=4), resume=True).train()
    wanted = {"hash": open_checkpoint(first).hash}
    assert read_run(tmp_path / "run")["init_from"] == wanted
    assert open_checkpoint(tmp_path / "run").about["init_from"] == wanted
    assert read_run(first)["init_from"] is None
    assert describe(tmp_path / "run")[1]["initial weights"] == f"model {wanted['hash']}"


def test_torchruns_restart_of_a_run_from_weights_resumes_it(store, tmp_path, monkeypatch):
    first = _trained(store, tmp_path / "first", steps=2)
    Trainer(store, tmp_path / "run", settings(steps=4), init_from=first).train()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Trainer(store, tmp_path / "run", settings(steps=4), init_from=first).step == 4


def test_torchruns_restart_of_a_run_that_died_before_it_had_saved_them_begins_from_the_weights(
    store, tmp_path, monkeypatch
):
    first = _trained(store, tmp_path / "first", steps=2)
    Trainer(store, tmp_path / "whole", settings(steps=4), init_from=first).train()
    Trainer(store, tmp_path / "run", settings(steps=4), init_from=first).train()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Trainer(store, tmp_path / "run", settings(steps=4), init_from=first).train()
    assert open_checkpoint(tmp_path / "run").hash == open_checkpoint(tmp_path / "whole").hash


def test_a_non_finite_loss_stops_and_the_last_checkpoint_stands(store, tmp_path):
    Trainer(store, tmp_path / "run", settings(steps=4)).train()
    before = files_of(tmp_path / "run")
    trainer = Trainer(store, tmp_path / "run", settings(steps=8), resume=True)
    with torch.no_grad():
        trainer.model.projector[0].weight[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"loss.*non-finite.*last good checkpoint is .*step-000000004"):
        trainer.train()
    assert files_of(tmp_path / "run") == before


def test_only_the_newest_checkpoints_are_kept(store, tmp_path):
    trainer = Trainer(store, tmp_path / "run", settings(steps=6, keep=2, checkpoint_minutes=1e-9))
    trainer.train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000000005", "step-000000006"]
    assert open_checkpoint(tmp_path / "run").step == 6


def test_metrics_of_steps_that_were_lost_are_dropped(store, tmp_path):
    run = tmp_path / "run"
    Trainer(store, run, settings(steps=4)).train()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n" + '{"step": 8, "lo')
    Trainer(store, run, settings(steps=6), resume=True).train()
    assert [row["step"] for row in read_metrics(run)] == [2, 4, 6]


def test_tensorboard_gets_the_same_numbers(store, tmp_path):
    Trainer(store, tmp_path / "run", settings(steps=4)).train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4]
    assert [event.value for event in events] == pytest.approx([row["loss"] for row in read_metrics(tmp_path / "run")])


def test_attention_is_picked_by_measurement():
    picked = plan.pick_attention(settings(batch=64), torch.device("cpu"), "fp32", "off")
    assert picked in plan.ATTENTION


@pytest.mark.parametrize("how", ["sdpa", "products", "sums"])
def test_every_form_of_attention_trains_alike(store, tmp_path, how):
    Trainer(store, tmp_path / "run", settings(steps=4, attention=how)).train()
    Trainer(store, tmp_path / "sdpa", settings(steps=4)).train()
    one, other = (read_metrics(tmp_path / name)[-1]["loss"] for name in ("run", "sdpa"))
    assert one == pytest.approx(other, abs=1e-4)


def test_a_profile_is_a_trace_and_a_table_of_stages(store, tmp_path):
    Trainer(store, tmp_path / "run", settings(steps=8)).train(profile=3)
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"wait for data", "forward+backward", "loss", "optimiser"} <= names
    lines = (tmp_path / "run" / "stages.txt").read_text().splitlines()
    assert [line[:18].strip() for line in lines] == ["wait for data", "forward+backward", "loss", "optimiser"]
    assert all(float(line.split()[-4]) >= 0 for line in lines)


def test_a_profile_of_more_steps_than_there_are_divides_by_those(store, tmp_path):
    def longest_ms(steps: int) -> float:
        Trainer(store, tmp_path / f"run{steps}", settings(steps=6)).train(profile=steps)
        return max(
            float(line.split()[-4]) for line in (tmp_path / f"run{steps}" / "stages.txt").read_text().split("\n")[:-1]
        )

    assert longest_ms(3000) > longest_ms(3) / 100


def test_a_run_that_ends_as_recording_begins_has_no_profile(store, tmp_path):
    for steps in (3, 6):
        Trainer(store, tmp_path / "run", settings(steps=steps), resume=steps > 3).train(profile=5)
        assert open_checkpoint(tmp_path / "run").step == steps
        assert not {"trace.json", "stages.txt"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_batch_beyond_memory_takes_two_passes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "free_bytes", lambda _: 500_000)
    trainer = Trainer(store, tmp_path / "run", settings(steps=1))
    assert trainer.settings.train.micro_batch < 8
    monkeypatch.undo()
    whole = Trainer(store, tmp_path / "whole", settings(steps=1))
    assert whole.settings.train.micro_batch == "off"
    trainer.train()
    whole.train()
    one, other = (read_metrics(tmp_path / name)[-1] for name in ("run", "whole"))
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_two_at_once_are_refused(store, tmp_path):
    refused = []

    def second(_):
        with pytest.raises(RunError, match=r"Another `myna pretrain` is writing to .*run: wait for it"):
            Trainer(store, tmp_path / "run", settings(steps=4), resume=True).train()
        refused.append(1)

    Trainer(store, tmp_path / "run", settings(steps=4)).train(on_log=second)
    assert refused == [1, 1]
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_rank_holds_its_share_of_the_patches():
    chosen, needs = settings(patches="square", batch=8), {}
    for ranks in (1, 2):
        needs[ranks] = plan.memory_estimate(chosen, precision="fp32", parameters=0, clips=2, together=True, ranks=ranks)
    patches = 8 * 2 * 5 * 256 * 4  # clips, views, tokens, values of a patch, bytes
    assert needs[1] - needs[2] == 2 * patches / 2  # two steps' patches at a time


def test_what_fits_is_asked_of_the_whole_auto_encoder(monkeypatch):
    chosen = recipe.override(recipe.get("mae"), {**TINY, "decoder_dim": 4096, "decoder_depth": 4})
    decoder = 4 * 4096 * (4 * chosen.model.decoder_heads * 16 + 2 * 64)
    monkeypatch.setattr(plan, "free_bytes", lambda _: 16 * decoder)  # weights, gradients and Adam of the decoder alone
    cpu = torch.device("cpu")
    assert plan.fitting_micro_batch(chosen, precision="fp32", device=cpu, world=SOLO) == 1


def test_memory_is_measured_when_the_store_is_in_its_place(store, tmp_path, monkeypatch):
    order = []
    for name, owner in (("place_rows", train), ("fitting_micro_batch", train)):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _n=name, _r=real, **k: order.append(_n) or _r(*a, **k))
    Trainer(store, tmp_path / "run", settings(steps=1))
    assert order == ["place_rows", "fitting_micro_batch"]


def test_the_plan_counts_what_will_be_done(store, tmp_path):
    told = Trainer(store, tmp_path / "run", settings(epochs=2.5)).plan()
    assert told.visible == {"square": (5, 48), "vertical": (5, 48)}
    assert (told.clips, told.tracks, told.steps_per_epoch, told.steps) == (30, 30, 3, 8)
    assert told.seconds_per_step > 0
    assert told.memory_bytes > 16 * told.parameters
    assert told.passes == 2
    assert not (tmp_path / "run").exists()  # a plan writes nothing


@pytest.mark.parametrize("changes", [{}, INDIVIDUAL, {"learn_temperature": True}])
def test_planning_does_not_change_the_run(store, tmp_path, changes):
    planned = Trainer(store, tmp_path / "a", settings(steps=4, **changes))
    planned.plan()
    planned.train()
    Trainer(store, tmp_path / "b", settings(steps=4, **changes)).train()
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_bf16_trains_close_to_fp32(store, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        Trainer(store, tmp_path / precision, settings(steps=4, precision=precision)).train()
        losses.append(read_metrics(tmp_path / precision)[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert losses[0] != losses[1]


def test_devices_and_precisions():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="'cuda:99' cannot be used"):
        pick_device("cuda:99")
    with pytest.raises(ConfigError, match="'toaster' cannot be used"):
        pick_device("toaster")
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"
    assert pick_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    assert pick_precision("auto", torch.device("meta")) == "fp32"


SCRIPT = """
import sys
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from myna import plan, recipe, train
from myna.store import Store
from myna.train import Trainer
torch.set_num_threads(1)
store, run, resume, changes = sys.argv[1], sys.argv[2], sys.argv[3] == "resume", eval(sys.argv[4])
trainer = Trainer(Store.open(store), run, recipe.override(recipe.get("tiny"), changes), resume=resume)
print("ready", flush=True)
stopped = trainer.train(on_log=lambda row: print(row["step"], flush=True))
print("stopped by", stopped, "at", trainer.step, flush=True)
"""


def start(store, run, changes) -> subprocess.Popen:
    how = "resume" if (run / "run.json").is_file() else "new"
    arguments = [sys.executable, "-c", SCRIPT, str(store.path), str(run), how, repr(changes)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_kill_9_at_random_moments_changes_nothing(store, tmp_path):
    changes = {**TINY, "steps": 40, "log_every": 1, "checkpoint_minutes": 0.0005}
    Trainer(store, tmp_path / "whole", recipe.override(recipe.get("tiny"), changes)).train()
    chance, run = random.Random(5), tmp_path / "killed"
    for _ in range(3):
        process = start(store, run, changes)
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.01, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    process = start(store, run, changes)
    output, _ = process.communicate(timeout=120)
    assert "stopped by None at 40" in output
    assert files_of(tmp_path / "whole") == files_of(run)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 41))
    assert not list(run.glob("**/*.part"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_can_go_on(store, tmp_path, number):
    changes = {**TINY, "steps": 100_000, "log_every": 1}
    process = start(store, tmp_path / "run", changes)
    for line in process.stdout:
        if line.strip() == "3":
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert f"stopped by {int(number)} at" in output
    assert process.returncode == 0
    assert open_checkpoint(tmp_path / "run").step >= 3
    assert Trainer(store, tmp_path / "run", recipe.override(recipe.get("tiny"), changes), resume=True).step >= 3


def test_a_damaged_run_file_is_said_plainly(tmp_path):
    with pytest.raises(RunError, match="no run in"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "myna-run", "version": 7}))
    with pytest.raises(RunError, match="version 7"):
        read_run(tmp_path)


def test_the_papers_batch_runs_at_full_size_in_the_small(store):
    """ViT-S with both patch kinds, one step of a few clips: shapes, counts and finite gradients at real width."""
    full = recipe.get("hybrid")
    model = MynaModel(full.model)
    views = Loader(store, full.view, full.model.grids(), batch=4, seed=0)(0)
    numbers = Step(model, full.loss)(views)
    assert math.isfinite(numbers["loss"].item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_init_from_asks_only_after_what_shapes_the_model(store, tmp_path):
    save_model(MynaModel(settings(projector_dim=0, projector_hidden=48).model), tmp_path / "bare")
    Trainer(
        store, tmp_path / "run", settings(projector_dim=0, decoder_dim=64, decoder_heads=4), init_from=tmp_path / "bare"
    )
    Trainer(store, tmp_path / "run", settings(decoder_dim=64), init_from=tmp_path / "bare")
    save_model(MynaModel(settings().model), tmp_path / "whole")
    with pytest.raises(ConfigError, match="differs from this run's in projector_hidden:"):
        Trainer(store, tmp_path / "run", settings(projector_hidden=48), init_from=tmp_path / "whole")
    auto_encoder = settings(decoder_depth=1)
    save_model(build_model(auto_encoder.model), tmp_path / "mae")
    Trainer(store, tmp_path / "run", settings(decoder_depth=1, projector_hidden=48), init_from=tmp_path / "mae")
    with pytest.raises(ConfigError, match="differs from this run's in decoder_dim:"):
        Trainer(store, tmp_path / "run", settings(decoder_depth=1, decoder_dim=64), init_from=tmp_path / "mae")


def test_init_from_weights_without_a_projector_draws_one(store, tmp_path):
    """The release shares none: a new one comes from the seed, everything else from the weights."""
    found = MynaModel(settings(projector_dim=0).model, seed=3)
    save_model(found, tmp_path / "m")
    trainer = Trainer(store, tmp_path / "run", settings(seed=9, steps=1), init_from=tmp_path / "m")
    assert trainer.new_projector
    weights, drawn = trainer.model.state_dict(), MynaModel(settings().model, seed=9).state_dict()
    for name, value in weights.items():
        assert torch.equal(value, drawn[name] if name.startswith("projector") else found.state_dict()[name])
    trainer.train()
    again = Trainer(store, tmp_path / "again", settings(), init_from=tmp_path / "run")
    assert not again.new_projector
    bare = Trainer(store, tmp_path / "bare", settings(projector_dim=0, steps=1), init_from=tmp_path / "m")
    assert not bare.new_projector
    bare.train()
    with pytest.raises(ConfigError, match="differs from this run's in depth:"):
        Trainer(store, tmp_path / "other", settings(depth=2), init_from=tmp_path / "m")
    with pytest.raises(ConfigError, match="differs from this run's in projector_dim:"):
        Trainer(store, tmp_path / "other", settings(projector_dim=0), init_from=tmp_path / "run")
