import numpy as np
import pytest
import torch
from pydantic import ValidationError

from myna import mask, noise
from myna.errors import ConfigError, StoreError
from myna.patch import PATCHES, Grid, patchify
from myna.store import Store
from myna.view import Clips, DeviceRows, HostRows, Loader, ViewConfig, gather, grids_of, place_rows
from stores import make_store, numbered_mel, random_mels

GRIDS = grids_of(("square", "vertical"), bands=128, frames=98)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    # lengths from one segment to several clips, over several data files
    mels = [numbered_mel(frames, first=1000 * i) for i, frames in enumerate([96, 100, 313, 470, 700, 1300, 96, 640])]
    return make_store(tmp_path_factory.mktemp("view") / "store", mels, file_bytes=200_000)


def loader(store, *, batch=4, seed=0, **options):
    return Loader(store, ViewConfig(**options), GRIDS, batch=batch, seed=seed)


def test_the_fixture_has_several_data_files(store):
    assert len(store.files) > 2


def test_visible_counts_are_the_papers(store):
    views = loader(store)(0)
    assert views["square"].patches.shape == (2, 4, 5, 256)
    assert views["vertical"].patches.shape == (2, 4, 5, 256)


def test_gathered_patches_equal_patchify_of_the_crop(store):
    """Brute force: cut the crop out of the whole mel, cut all patches, and look up the visible ones."""
    loads = loader(store)
    drawn, views = loads.draw(3), loads(3)
    first = store.first_rows()
    for kind, grid in GRIDS.items():
        for view in range(2):
            for item in range(4):
                row = int(drawn.rows[view, item])
                track = max(i for i in range(len(store)) if first[i] <= row and row < first[i] + store.frames[i])
                start = row - first[track]
                crop = torch.from_numpy(store.mel(track)[start : start + 96])
                assert len(crop) == 96
                wanted = patchify(crop[None], grid.patch)[0][drawn.tokens[kind][view, item]]
                assert torch.equal(views[kind].patches[view, item], wanted)
                assert torch.equal(views[kind].tokens, drawn.tokens[kind])


@pytest.mark.parametrize("kind", ["square", "vertical"])
def test_device_rows_equal_host_rows(store, kind):
    drawn = loader(store).draw(1)
    host = gather(HostRows(store.files), drawn.rows, drawn.tokens[kind], GRIDS[kind])
    device = gather(DeviceRows(store.files, torch.device("cpu")), drawn.rows, drawn.tokens[kind], GRIDS[kind])
    assert torch.equal(host, device)


def same(a, b):
    return all(torch.equal(a[k].patches, b[k].patches) and torch.equal(a[k].tokens, b[k].tokens) for k in a)


def test_a_batch_is_a_function_of_store_seed_and_step_alone(store):
    one, other = loader(store), loader(Store.open(store.path))
    wanted = [one(step) for step in range(6)]
    for step in (5, 0, 3):  # another process would ask in any order
        assert same(other(step), wanted[step])
    assert not same(one(0), one(1))
    assert not same(one(0), loader(store, seed=1)(0))


def test_ranks_draw_their_rows_of_the_same_batch(store):
    whole = loader(store)(2)
    for slice_ in (slice(0, 1), slice(1, 3), slice(3, 4)):
        part = Loader(store, ViewConfig(), GRIDS, batch=4, seed=0, slice_=slice_)(2)
        for kind in whole:
            assert torch.equal(part[kind].patches, whole[kind].patches[:, slice_])
            assert torch.equal(part[kind].tokens, whole[kind].tokens[:, slice_])


def test_the_order_of_files_on_disk_changes_nothing(tmp_path):
    mels = random_mels(6, 200)
    one = make_store(tmp_path / "one", mels)
    many = make_store(tmp_path / "many", mels, file_bytes=1)
    assert len(many.files) > len(one.files)
    assert one.hash == many.hash
    assert same(loader(one)(0), loader(many)(0))


def test_an_epoch_takes_every_clip_once_and_no_track_twice_in_a_batch(tmp_path):
    store = make_store(tmp_path / "store", [numbered_mel(frames) for frames in [96] * 20 + [950] * 10 + [1600] * 4])
    clips = Clips(store, clip_seconds=10.0, crop_frames=96)
    assert len(clips) == 20 + 10 * 3 + 4 * 5
    batch = 10
    for epoch in range(5):
        order = clips.order(seed=1, epoch=epoch, batch=batch)
        assert order.shape == (7, batch)
        assert len(order.unique()) == 7 * batch
        for step in order:
            assert len(clips.track[step].unique()) == batch
    assert not torch.equal(clips.order(seed=1, epoch=0, batch=batch), clips.order(seed=1, epoch=1, batch=batch))


@pytest.mark.parametrize(("tracks", "batch"), [(30, 25), (40, 32), (64, 32), (25, 25)])
def test_unequal_tracks_never_meet_themselves_while_there_are_enough(tmp_path, tracks, batch):
    rng = np.random.default_rng(0)
    store = make_store(tmp_path / "store", [numbered_mel(int(n), 8) for n in rng.integers(320, 6000, tracks)])
    clips = Clips(store, clip_seconds=10.0, crop_frames=96)
    steps = clips.steps(batch)
    fits = [s for s in range(1, 100) if sum(min(int(n), s) for n in clips.count) >= s * batch]
    assert steps == max(fits)
    for epoch in range(3):
        order = clips.order(seed=0, epoch=epoch, batch=batch)
        assert order.shape == (steps, batch)
        assert len(order.unique()) == steps * batch
        assert all(len(clips.track[step].unique()) == batch for step in order)


def test_every_clip_gets_its_turn(tmp_path):
    store = make_store(tmp_path / "store", [numbered_mel(96) for _ in range(7)])
    clips = Clips(store, clip_seconds=10.0, crop_frames=96)
    seen = torch.cat([clips.order(seed=0, epoch=e, batch=3).flatten() for e in range(40)])
    counts = torch.bincount(seen, minlength=7)  # 6 of 7 clips an epoch
    assert counts.sum() == 40 * 6
    assert counts.min() > 25


def test_one_long_track_still_fills_a_batch(tmp_path):
    store = make_store(tmp_path / "store", [numbered_mel(3200)])
    order = Clips(store, clip_seconds=10.0, crop_frames=96).order(seed=0, epoch=0, batch=5)
    assert len(order.unique()) == 10


def test_views_stay_inside_their_clip_and_reach_all_of_it(tmp_path):
    store = make_store(tmp_path / "store", [numbered_mel(700), numbered_mel(100, first=5000)])
    loads = Loader(store, ViewConfig(clip_seconds=10.0), GRIDS, batch=2, seed=0)
    starts = {0: set(), 1: set()}
    for step in range(600):
        rows, clip = loads.draw(step).rows, loads.clip_numbers(step)
        first, frames = loads.clips.span(clip, seed=0, epoch=step // loads.steps_per_epoch)
        assert (rows >= first).all()
        assert (rows + 96 <= first + frames).all()
        for item, track in enumerate(loads.clips.track[clip].tolist()):
            starts[track] |= set((rows[:, item] - loads.clips.row[track]).tolist())
    assert starts[1] == set(range(5))  # 100 frames hold 96 at 5 places
    assert min(starts[0]) < 10  # the whole track is reached, though two clips of 312 frames leave 76 over
    assert max(starts[0]) > 594


def test_a_clip_of_ten_seconds_has_312_frames_and_thirty_seconds_have_three(tmp_path):
    store = make_store(tmp_path / "store", [numbered_mel(938), numbered_mel(313)])
    clips = Clips(store, clip_seconds=10.0, crop_frames=96)
    assert clips.count.tolist() == [3, 1]
    assert clips.frames.tolist() == [312, 312]


def test_clip_seconds_0_takes_whole_tracks(store):
    clips = Clips(store, clip_seconds=0.0, crop_frames=96)
    assert len(clips) == len(store)
    assert sorted(clips.frames.tolist()) == sorted(store.frames.tolist())


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 96), (3.0, 96), (3.104, 97), (4.832, 151), (9.6, 300)])
def test_a_clip_is_the_whole_frames_in_it_and_one_segment_at_least(tmp_path, seconds, frames):
    store = make_store(tmp_path / "store", [numbered_mel(700)])
    clips = Clips(store, clip_seconds=seconds, crop_frames=96)
    assert clips.frames.tolist() == [frames]
    assert len(clips) == 700 // frames


def test_the_two_views_of_a_clip_are_drawn_apart(store):
    drawn = [loader(store, clip_seconds=0).draw(step) for step in range(20)]
    rows = torch.stack([d.rows for d in drawn])
    assert (rows[:, 0] != rows[:, 1]).any()
    tokens = torch.stack([d.tokens["square"] for d in drawn])
    assert (tokens[:, 0] != tokens[:, 1]).any()
    assert not torch.equal(drawn[0].tokens["square"], drawn[0].tokens["vertical"])


def test_both_views_of_one_segment_begin_at_one_frame(store):
    loads = loader(store, clip_seconds=0, pair="segment")
    rows = torch.stack([loads.draw(step).rows for step in range(20)])
    assert torch.equal(rows[:, 0], rows[:, 1])
    paper = torch.stack([loader(store, clip_seconds=0).draw(step).rows for step in range(20)])
    assert torch.equal(rows[:, 0], paper[:, 0])  # the first view is the paper's


@pytest.mark.parametrize("seconds", [0.0, 0.1, 2.0])
def test_near_segments_begin_within_so_many_seconds(store, seconds):
    loads = loader(store, clip_seconds=0, pair="near", pair_seconds=seconds)
    rows = torch.stack([loads.draw(step).rows for step in range(200)])
    furthest = int((rows[:, 0] - rows[:, 1]).abs().max())
    assert furthest == int(seconds * 16_000 / 512)


def test_complement_shows_every_patch_of_one_segment_once(store):
    """At one half, both views together are the whole crop."""
    views = loader(store, pair="segment", mask_policy="complement", mask_ratio=0.5)(3)
    for view in views.values():
        tokens = torch.cat([*view.tokens], dim=1)
        assert tokens.sort(dim=1).values.tolist() == [list(range(48))] * 4


def test_complement_needs_one_segment(store):
    with pytest.raises(ValidationError, match="take pair segment"):
        ViewConfig(mask_policy="complement")
    with pytest.raises(ConfigError, match=r"0\.5 or more"):
        loader(store, pair="segment", mask_policy="complement", mask_ratio=0.4)


@pytest.mark.parametrize("policy", ["time", "blocks", "gaussian", "complement"])
def test_policies_reach_the_views_and_ranks_share_them(store, policy):
    options = {"pair": "segment", "mask_policy": policy, "mask_ratio": 0.7}
    whole = loader(store, **options)(2)
    part = Loader(store, ViewConfig(**options), GRIDS, batch=4, seed=0, slice_=slice(1, 3))(2)
    for kind, grid in GRIDS.items():
        view = torch.arange(8).view(4, 2).T
        key = noise.key(0, 2, 5 + list(GRIDS).index(kind))
        wanted = mask.draw(policy, key, view, grid=grid, visible=15)
        assert torch.equal(whole[kind].tokens, wanted)
        assert torch.equal(part[kind].tokens, wanted[:, 1:3])


def test_views_know_their_clips_and_can_be_cut(store):
    loads = loader(store)
    view = loads(2)["square"]
    assert len(view) == 4
    assert torch.equal(view.clips, loads.clip_numbers(2))
    assert torch.equal(view[1:3].clips, view.clips[1:3])
    assert torch.equal(view[1:3].patches, view.patches[:, 1:3])
    assert torch.equal(view[1:3].tokens, view.tokens[:, 1:3])
    part = Loader(store, ViewConfig(), GRIDS, batch=4, seed=0, slice_=slice(1, 3))(2)
    assert torch.equal(part["vertical"].clips, view.clips[1:3])


def test_mask_ratio_0_keeps_every_token(store):
    views = loader(store, mask_ratio=0.0)(0)
    assert views["square"].tokens.sort(dim=-1).values.unique(dim=1).shape == (2, 1, 48)


def test_too_short_too_few_and_nothing_are_clear_errors(tmp_path):
    short = make_store(tmp_path / "short", [numbered_mel(50)])
    with pytest.raises(StoreError, match=r"shorter than the 96 frames .*the longest has 50"):
        loader(short, batch=1)
    empty = make_store(tmp_path / "empty", [])
    with pytest.raises(StoreError, match="no tracks"):
        loader(empty, batch=1)
    for place in ("auto", "device", "host"):
        with pytest.raises(StoreError, match="no tracks"):
            place_rows(empty, place, torch.device("cpu"), threads=1)
    few = make_store(tmp_path / "few", [numbered_mel(96)] * 3)
    with pytest.raises(StoreError, match="only 3 clips in 3 tracks"):
        loader(few, batch=4)


@pytest.mark.parametrize("place", [HostRows, lambda files: DeviceRows(files, torch.device("cpu"))])
def test_a_store_of_bytes_gives_the_same_views_within_its_error(tmp_path, place):
    mels = random_mels(6, 200)
    exact = make_store(tmp_path / "exact", mels)
    coarse = make_store(tmp_path / "coarse", mels, dtype="uint8", file_bytes=30_000)
    for step in range(2):
        one = loader(exact)(step)
        other = Loader(coarse, ViewConfig(), GRIDS, batch=4, seed=0, rows=place(coarse.files))(step)
        for kind in one:
            assert torch.equal(one[kind].tokens, other[kind].tokens)
            np.testing.assert_allclose(other[kind].patches, one[kind].patches, rtol=0.07, atol=2e-9)


def test_several_threads_read_what_one_reads(store):
    drawn = loader(store).draw(1)
    for kind, grid in GRIDS.items():
        one, many = (gather(HostRows(store.files, threads=n), drawn.rows, drawn.tokens[kind], grid) for n in (1, 3))
        assert torch.equal(one, many)


def test_vertical_alone_uses_98_frames():
    grid = grids_of(("vertical",), bands=128, frames=98)["vertical"]
    assert grid == Grid(PATCHES["vertical"], 1, 49)
    both = grids_of(("vertical", "square"), bands=128, frames=98)
    assert both == {kind: grids_of(("square", "vertical"), bands=128, frames=98)[kind] for kind in both}


def test_companding_is_the_only_loss(tmp_path):
    mel = random_mels(1, 96)[0]
    store = make_store(tmp_path / "store", [mel, mel * 1e-6])
    patches = Loader(store, ViewConfig(mask_ratio=0.0), GRIDS, batch=2, seed=0)(0)["vertical"].patches
    powers = np.sort(patches.double().numpy(), axis=None)
    wanted = np.sort(np.concatenate([mel, mel * 1e-6] * 2).astype(np.float64), axis=None)
    np.testing.assert_allclose(powers, wanted, rtol=5e-3, atol=1e-16)


def test_the_order_of_an_epoch_is_drawn_once_and_may_be_asked_for_ahead(store, monkeypatch):
    plain, ahead = loader(store), loader(store)
    wanted = [plain.clip_numbers(step).tolist() for step in range(4 * plain.steps_per_epoch)]
    drawn, order = [], ahead.clips.order
    monkeypatch.setattr(
        ahead.clips, "order", lambda *, epoch, **more: drawn.append(epoch) or order(epoch=epoch, **more)
    )
    found = []
    for epoch in range(4):
        ahead.order(epoch + 1)
        found += [ahead.clip_numbers(epoch * ahead.steps_per_epoch + i).tolist() for i in range(ahead.steps_per_epoch)]
    assert found == wanted
    assert drawn == [1, 0, 2, 3, 4]
