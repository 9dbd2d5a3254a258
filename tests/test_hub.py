"""The Hugging Face Hub, as a server on 127.0.0.1 that huggingface_hub itself talks to."""

import json

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from hubs import serving
from myna import Myna, recipe
from myna.about import learned
from myna.checkpoint import save_model
from myna.cli import main
from myna.errors import CheckpointError
from myna.hub import card, open_model, push
from myna.model import ModelConfig, MynaModel
from myna.part import Part
from myna.run import read_metrics
from myna.store import Store
from myna.train import Trainer
from original import Original
from stores import make_store, random_mels

SMALL = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64}
ORIGINAL = {"dim": 64, "depth": 1, "heads": 1, "hidden": 96}
TOKEN = "hf_right"


def talk_to(url: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving() as hub:
        talk_to(hub.url, monkeypatch)
        yield hub


@pytest.fixture
def model():
    return MynaModel(ModelConfig(patches=("square", "vertical"), **SMALL), seed=3)


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(60_000).astype(np.float32) / 10


def original_bytes(tmp_path, kind: str, prefix: str = "") -> bytes:
    path = tmp_path / "state"
    torch.save({f"{prefix}{key}": value for key, value in Original(kind, **ORIGINAL).state_dict().items()}, path)
    return path.read_bytes()


def test_what_is_pushed_comes_back(hub, model):
    myna = Myna(model, precision="fp32", hash="abc", about={"step": 7, "examples": 900, "store": "0" * 64})
    address = myna.push_to_hub("anna/songs", licence="cc-by-4.0", data="folk songs", private=True, token=TOKEN)
    assert address == f"{hub.url}/anna/songs"
    assert sorted(hub.files("anna/songs")) == ["README.md", "config.json", "model.safetensors"]
    assert hub.private == {"anna/songs"}
    again = Myna.from_pretrained("anna/songs", precision="fp32")
    np.testing.assert_array_equal(again.encode(noise(), rate_hz=16_000), myna.encode(noise(), rate_hz=16_000))
    assert again.about["step"] == 7
    assert again.about["hub"] == f"anna/songs@{next(iter(hub.repos['anna/songs']))}"
    text = hub.files("anna/songs")["README.md"].decode()
    assert "license: cc-by-4.0" in text
    assert "folk songs" in text


def test_a_second_push_changes_the_files_and_a_revision_brings_the_first_back(hub, model):
    Myna(model).push_to_hub("anna/songs", token=TOKEN)
    first = next(iter(hub.repos["anna/songs"]))
    Myna(MynaModel(model.config, seed=4)).push_to_hub("anna/songs", token=TOKEN)
    newest, oldest = open_model("anna/songs"), open_model("anna/songs", revision=first)
    assert newest.hash != oldest.hash
    assert oldest.about["hub"].endswith(first)
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        open_model("anna/songs", revision="v9")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "myna-{}.pth"])
@pytest.mark.parametrize(("name", "kind"), [("base", "square"), ("vertical", "vertical"), ("85m", "hybrid")])
def test_repositories_of_the_release(hub, tmp_path, name, kind, file):
    """Their config.json and code are not ours: the one is passed over, the other never fetched."""
    weights = original_bytes(tmp_path, kind, "model.")
    files = {"config.json": b'{"model_type": "myna"}', "modeling.py": b"boom", file.format(name): weights}
    hub.commit(f"oriyonay/myna-{name}", files)
    found = open_model(f"oriyonay/myna-{name}")
    assert found.config.patches == (("square", "vertical") if kind == "hybrid" else (kind,))
    wanted = Original(kind, **ORIGINAL).of_samples(torch.from_numpy(noise()[None, :50_000]))[0]
    np.testing.assert_allclose(Myna(found.model(), precision="fp32").encode(noise(), rate_hz=16_000), wanted, atol=1e-5)
    assert not any("modeling.py" in what for what in hub.asked)


def test_a_local_copy_of_such_a_repository(tmp_path):
    folder = tmp_path / "myna-vertical"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "myna"}')
    (folder / "pytorch_model.bin").write_bytes(original_bytes(tmp_path, "vertical"))
    assert open_model(folder).config.patches == ("vertical",)
    (folder / "config.json").write_text("[")
    assert open_model(str(folder)).config.patches == ("vertical",)


def test_a_model_of_ours_without_a_whole_config_is_told_so(model, tmp_path):
    save_model(model, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    for broken in ("[", "\0" * 40, "[]"):
        config.write_text(broken)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged .*take another copy"):
            open_model(tmp_path / "m")
    config.unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_model(tmp_path / "m")


def test_what_was_fetched_works_without_a_connection(hub, model, tmp_path, monkeypatch):
    Myna(model).push_to_hub("anna/songs", token=TOKEN)
    hub.commit("oriyonay/myna-base", {"myna-base.pth": original_bytes(tmp_path, "square")})
    found = {name: open_model(name).hash for name in ("anna/songs", "oriyonay/myna-base")}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert {name: open_model(name).hash for name in found} == found
    assert hub.asked == []
    with pytest.raises(CheckpointError, match=r"no model at anna/other.*cannot be reached.*cache"):
        open_model("anna/other")


def test_what_cannot_be_fetched_is_one_sentence(hub, model):
    hub.commit("anna/empty", {"README.md": b"soon"})
    hub.commit("anna/closed", {"model.safetensors": b"secret"})
    hub.gated.add("anna/closed")
    wanted = {
        "anna/nothing": "There is no model at anna/nothing.*Hub id such as user/name was wanted",
        "anna/empty": "has no weights that myna reads: model.safetensors, pytorch_model.bin, empty.pth",
        "anna/closed": "asks for consent",
        "anna/son--gs": "cannot be the name of a Hub repository",
    }
    for name, message in wanted.items():
        with pytest.raises(CheckpointError, match=message) as told:
            Myna.from_pretrained(name)
        assert "\n" not in str(told.value)
    hub.commit("anna/damaged", {"config.json": b"{", "model.safetensors": b"no"})
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        open_model("anna/damaged")
    with pytest.raises(CheckpointError, match="could not serve anna/songs"):
        push(model, "anna/songs", card="", token="hf_wrong")
    with pytest.raises(CheckpointError, match="is no Hub id"):
        push(model, "songs", card="", token=TOKEN)


def test_only_a_string_of_that_form_that_is_no_path_asks_the_hub(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(model, tmp_path / "anna" / "songs")
    assert open_model("anna/songs").config == model.config
    for source in (
        tmp_path / "a",
        "a",
        "a/b/c",
        "anna/snogs",
        "../a",
        "./a/b",
        "/a/b",
        (tmp_path / "a").relative_to(tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"There is no model at .*Hub id such as user/name was wanted"):
            open_model(source)
    assert hub.asked == []


def test_the_card_tells_what_is_known_and_nothing_else():
    config = ModelConfig(patches=("square", "vertical"))
    settings = {"recipe": "hybrid", "train": {"batch": 4096, "keep": 2}, "loss": {"temperature": 0.1}, "view": {}}
    text = card(
        "anna/songs",
        config,
        hash="0123",
        about={"step": 100, "examples": 409_600, "store": "f" * 64, "settings": settings},
        metrics={"loss": 3.21987, "top1": 0.5, "clips_per_s": 9.0},
        results={"gtzan": {"accuracy": 78.31}},
        data="900 h of folk songs",
        licence="cc-by-4.0",
    )
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    assert head["library_name"] == "myna"
    assert "arxiv:2502.12511" in head["tags"]
    for piece in (
        'Myna.from_pretrained("anna/songs")',
        "(2, 768) float32",
        "square (16 bands x 16 frames, 48 tokens), vertical (128 bands x 2 frames, 48 tokens)",
        "width 384, depth 12, 6 heads, 21.7 M parameters",
        "| data | 900 h of folk songs |",
        "| content of the data | hash ffffffffffffffff |",
        "409,600 examples in 100 steps",
        "| batch | 4096 |",
        "| temperature | 0.1 |",
        "| last loss | 3.22 |",
        "| last top-1 retrieval | 0.5 |",
        "| gtzan, accuracy | 78.31 |",
        "These weights: cc-by-4.0.",
    ):
        assert piece in text
    assert "clips" not in text
    assert "keep" not in text
    silent = card("anna/songs", config)
    assert "license" not in silent.split("---")[1]
    assert "What it was trained on was not stated." in silent
    assert "None was stated for these weights" in silent
    assert "Results" not in silent
    released = card(
        "a/b",
        config,
        about={"origin": "the original release", "file": "x.pth", "left_aside": ["linear_head.bias (50,)"]},
    )
    assert "| origin | weights of the original release, converted from x.pth |" in released
    assert "| left aside | linear_head.bias (50,) |" in released
    tuned = card(
        "a/b", config, about={"init_from": {"hash": "4567", "origin": "the original release", "file": "x.pth"}}
    )
    assert "| initial weights | model 4567, which descends from the original release (x.pth) |" in tuned
    assert "initial weights" not in card("a/b", config, about={"init_from": None})
    with pytest.raises(CheckpointError, match="no licence id"):
        card("a/b", config, licence="all mine: yes")


def test_save_pretrained_is_a_model_folder(model, tmp_path):
    Myna(model, about={"step": 5}).save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["about"] == {"step": 5}
    assert Myna.from_pretrained(str(tmp_path / "m")).model.config == model.config


def test_a_run_is_pushed_with_its_metrics_and_music(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store = make_store(tmp_path / "store", random_mels(10, 130))
    settings = recipe.override(recipe.get("tiny"), {**SMALL, "batch": 4, "steps": 2, "precision": "fp32"})
    Trainer(store, tmp_path / "run", settings).train()
    (tmp_path / "scores.json").write_text('{"gtzan": {"accuracy": 0.5}}')
    arguments = ["push", str(tmp_path / "run"), "anna/songs", "--license", "mit", "--results"]
    for results, status in (("scores.json", 0), ("nothing.json", 1), ("run/run.json", 1)):
        with pytest.raises(SystemExit) as end:
            main([*arguments, str(tmp_path / results)])
        assert end.value.code == status
        output = capsys.readouterr()
        assert output.out == ("" if status else f"{hub.url}/anna/songs\n")
        assert ("cannot be read as results" in output.err) == bool(status)
    text = hub.files("anna/songs")["README.md"].decode()
    for piece in (
        "| data | 0.0 h of music in 10 tracks |",
        "| last loss |",
        "| gtzan, accuracy | 0.5 |",
        "weights: mit.",
    ):
        assert piece in text
    everything = b"".join(hub.files("anna/songs").values())
    assert str(tmp_path).encode() not in everything  # a card tells nothing of the machine


@pytest.fixture
def run(tmp_path):
    """A run of six steps that keeps its checkpoints of the third and the last."""
    store = make_store(tmp_path / "store", random_mels(10, 130))
    lengths = {"batch": 4, "precision": "fp32", "log_every": 1, "keep": 9}
    for steps in (3, 6):
        settings = recipe.override(recipe.get("tiny"), {**SMALL, **lengths, "steps": steps})
        Trainer(store, tmp_path / "run", settings, resume=steps == 6).train()
    return tmp_path / "run"


def test_a_card_tells_of_the_checkpoint_that_is_pushed(run, tmp_path):
    rows = {int(row["step"]): row for row in read_metrics(run)}
    for place, step in ((run, 6), (run / "checkpoints" / "step-000000003", 3)):
        told = learned(open_model(place))
        assert told == {"metrics": rows[step], "data": "0.0 h of music in 10 tracks"}
    with open(run / "metrics.jsonl", "a") as file:  # a run that goes on
        file.write(json.dumps(rows[6] | {"step": 7}) + "\n")
    assert learned(open_model(run))["metrics"] == rows[6]
    (tmp_path / "best").symlink_to(run / "checkpoints" / "step-000000003")
    assert learned(open_model(tmp_path / "best"))["metrics"] == rows[3]
    for name in ("other", "checkpoints/other"):
        save_model(MynaModel(ModelConfig(**SMALL)), run / name)
        assert learned(open_model(run / name)) == {}, "it lies in the run, but is not of it"
    store = tmp_path / "store"
    part = Part(store, Store.open(store).front_end)
    part.begin(part.known())  # as while the store is updated
    assert learned(open_model(run)).keys() == {"metrics"}
    (store / "store.json").write_text("[]")
    assert learned(open_model(run)).keys() == {"metrics"}


def test_the_card_of_an_auto_encoder():
    settings = recipe.get("mae")
    text = card("anna/mae", settings.model, about={"settings": settings.model_dump(mode="json")})
    assert "Trained as a masked auto-encoder" in text
    assert "Trained by masking-based contrastive learning" not in text
    assert "| mask ratio | 0.75 |" in text
    for nothing in ("| loss |", "temperature"):
        assert nothing not in text


def test_without_a_connection_the_cache_serves(hub, model, monkeypatch):
    Myna(model).push_to_hub("anna/songs", token=TOKEN)
    wanted = open_model("anna/songs").hash
    with serving() as closed:
        pass
    talk_to(closed.url, monkeypatch)
    hub.asked.clear()
    assert open_model("anna/songs").hash == wanted
    assert hub.asked == []
    with pytest.raises(CheckpointError, match="could not serve anna/songs"):
        push(model, "anna/songs", card="", token=TOKEN)
