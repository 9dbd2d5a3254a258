import shutil

import pytest

from myna import demo as module
from myna import library
from myna.demo import demo
from myna.errors import ConfigError
from myna.exam import compose
from myna.songs import song
from sounds import music, write_audio

TINY = {"steps": "2", "batch": "2", "depth": "1", "dim": "32", "mlp_dim": "64", "heads": "2", "head_dim": "16"}


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A folder with a little music."""
    folder = tmp_path_factory.mktemp("heard")
    for seed in range(3):
        write_audio(folder / f"{seed}.flac", music(5.0, 16_000, seed=seed), 16_000)
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_goes_on_where_it_was_and_says_how_it_was_made(heard, tmp_path):
    page = demo(tmp_path / "demo", music=heard, overrides=TINY)
    before = contents(tmp_path / "demo" / "run" / "checkpoints")
    assert f"myna demo --music {heard} --steps 2" in page.read_text(encoding="utf-8")
    (tmp_path / "demo" / "library.parquet.parts").mkdir()
    (tmp_path / "demo" / "library.parquet.parts" / "part-000000.parquet").write_bytes(b"of another model")
    demo(tmp_path / "demo", music=heard, overrides=TINY)
    assert contents(tmp_path / "demo" / "run" / "checkpoints") == before


def test_the_page_names_the_patches_of_the_model(heard, tmp_path):
    page = demo(tmp_path / "demo", music=heard, overrides=TINY | {"patches": "square"})
    assert "square patches" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["run", "store", "library.parquet"])
def test_what_no_demo_made_is_left_alone(heard, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_text("weeks of work")
    with pytest.raises(ConfigError, match=f"holds {name} and no demo.json, which a demo leaves"):
        demo(tmp_path, music=heard, overrides=TINY)
    assert [path.name for path in tmp_path.rglob("*")] == [name, "precious"]


@pytest.mark.parametrize("other", [{"music": None}, {"seed": 1}, {"size": "smoke"}])
def test_another_demo_is_not_mixed_with_it(heard, tmp_path, other):
    demo(tmp_path, music=heard, overrides=TINY)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a demo of other things .*another folder with -o, or remove it"):
        demo(tmp_path, **{"music": heard, "overrides": TINY} | other)
    assert contents(tmp_path) == before


def test_a_run_is_kept_when_the_music_has_changed(heard, tmp_path):
    grown = shutil.copytree(heard, tmp_path / "music")
    demo(tmp_path / "demo", music=grown, overrides=TINY)
    before = contents(tmp_path / "demo" / "run")
    write_audio(grown / "new.flac", music(5.0, 16_000, seed=9), 16_000)
    with pytest.raises(ConfigError, match=r"is not what .*run was trained on: remove .*run to train anew"):
        demo(tmp_path / "demo", music=grown, overrides=TINY)
    assert contents(tmp_path / "demo" / "run") == before


def test_a_file_that_crashed_the_process_is_remembered(heard, tmp_path, monkeypatch):
    demo(tmp_path, music=heard, overrides=TINY)
    (tmp_path / "library.parquet.parts").mkdir()
    (tmp_path / "library.parquet.parts" / "opened.txt").write_bytes(f"+{heard / '0.flac'}\0".encode())
    tried = []
    monkeypatch.setattr(library, "why_fatal", lambda path: tried.append(path))
    demo(tmp_path, music=heard, overrides=TINY)
    assert tried == [heard / "0.flac"]


@pytest.mark.parametrize("claim", ["", "[1]", "{"])
def test_a_damaged_claim_is_one_sentence(heard, tmp_path, claim):
    (tmp_path / "demo.json").write_text(claim)
    with pytest.raises(ConfigError, match=r"demo.json is damaged: give another folder"):
        demo(tmp_path, music=heard, overrides=TINY)


def test_a_file_is_no_folder(heard, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        demo(tmp_path / "out", music=heard, overrides=TINY)


def test_music_is_the_same_however_it_is_spelt(heard, tmp_path):
    demo(tmp_path, music=heard, overrides=TINY)
    demo(tmp_path, music=heard / ".." / heard.name, overrides=TINY)


def test_songs_are_composed_once_and_anew_for_another_seed(tmp_path):
    first = compose(tmp_path / "songs", 3, seconds=2, seed=0)
    assert [one for _, one in first] == [song(0, index, seconds=2) for index in range(3)]
    before = contents(tmp_path)
    assert compose(tmp_path / "songs", 3, seconds=2, seed=0) == first
    assert contents(tmp_path) == before
    assert [one.seed for _, one in compose(tmp_path / "songs", 2, seconds=2, seed=5)] == [5, 5]
    assert contents(tmp_path)[first[0][0].relative_to(tmp_path)] != before[first[0][0].relative_to(tmp_path)]


def test_songs_of_a_larger_exam_are_no_part_of_a_smaller_one(tmp_path):
    """The exam's tracks are those that were composed for it, whatever else lies in its folder."""
    compose(tmp_path, 4, seconds=2, seed=0)
    few = compose(tmp_path, 3, seconds=2, seed=0)
    assert [track.path for track in module._tracks(path for path, _ in few)] == sorted(path for path, _ in few)
