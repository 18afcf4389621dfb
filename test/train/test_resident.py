# SPDX-License-Identifier: Apache-2.0
"""Clips in a device's memory: what is drawn is what was written, the right way round."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egoedit_ros.data.clip import StoredClip, write_stored
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.latents import encode_clip, to_pixels
from egoedit_ros.train.resident import ResidentClips, ResidentData, Where, corner_around, crop
from egoedit_ros.train.stages import read_recipe, recipe_config

CONFIG = recipe_config(read_recipe(Path(__file__).parents[2] / "config" / "train" / "tiny.yaml"))
TEXTS = ["make the red square blue", "move it to the left"]


def _clip(number, edits=1, text=TEXTS[0]):
    rng = np.random.default_rng(number)
    source = rng.integers(0, 200, (5, 48, 64, 3), dtype=np.uint8)
    targets = []
    for edit in range(edits):
        target = source.copy()
        target[:, 8 : 24 + 8 * edit, 40:56] = 255
        targets.append(target)
    hand = np.zeros(source.shape[:3], bool)
    return StoredClip(number, ["recolour"] * edits, [text] * edits, source, targets, hand)


def _open(folder, **more):
    data = ResidentData((folder,), clips=4, pixels=4, frames=5, edits=2, **more)
    return ResidentClips(data, CONFIG, torch.device("cpu"))


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return EdgeAutoencoder(CONFIG.autoencoder).eval().requires_grad_(False)


def _all(clips, turn):
    return Where(
        torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([turn, turn]),
        torch.tensor([[0, 1], [0, 1]]),
    )  # fmt: skip


def test_clips_are_read_as_they_appear_but_never_those_that_evaluate(tmp_path):
    write_stored(tmp_path, _clip(3))
    write_stored(tmp_path, _clip(1_000_000))
    with _open(tmp_path) as clips:
        clips.wait_for(1, seconds=20)
        write_stored(tmp_path, _clip(4))
        clips.wait_for(2, seconds=20)
        assert clips.count == 2
        with pytest.raises(UserError, match="2 of 3 clips"):
            clips.wait_for(3, seconds=1)


@pytest.mark.parametrize("text", TEXTS)
def test_latents_are_those_of_the_stage_latents(tmp_path, autoencoder, text):
    """Both ways round, and not mirrored where the text says left."""
    clip = _clip(3, edits=2, text=text)
    write_stored(tmp_path, clip)
    with _open(tmp_path) as clips:
        clips.wait_for(1, seconds=20)
        clips.encode_with(autoencoder)
        wanted = encode_clip(autoencoder, clip, CONFIG)
        torch.testing.assert_close(clips.latents[0], wanted.latents, atol=2e-3, rtol=1e-2)
        assert torch.equal(clips.edited[0], wanted.edited)
        torch.testing.assert_close(clips.text[0], wanted.text, atol=2e-2, rtol=1e-2)


def test_pictures_are_the_windows_pixels_also_of_mirrored_squares(tmp_path):
    write_stored(tmp_path, _clip(3))
    with _open(tmp_path) as clips:
        clips.wait_for(1, seconds=20)
        write_stored(tmp_path, _clip(4))
        clips.wait_for(2, seconds=20)
        corners = torch.tensor([[8, 16], [0, 24]])
        for turn in (0, 1):
            source, target = clips.pictures(_all(clips, turn), corners, (16, 32))
            for row, clip in enumerate((_clip(3), _clip(4))):
                for made, video in ((source, clip.source), (target, clip.targets[0])):
                    whole = to_pixels(video[:, :, ::-1] if turn else video)[0]
                    y, x = corners[row].tolist()
                    part = whole[:, :, y : y + 16, x : x + 32]
                    torch.testing.assert_close(made[row, 0], part[:1].expand(4, -1, -1, -1))
                    torch.testing.assert_close(made[row, 1], part[1:])


def test_pairs_between_targets_are_drawn_with_their_own_films(tmp_path, autoencoder):
    clip = _clip(3, edits=2)
    pairs = [(0, 1), (0, 2), (1, 2), (2, 1)]
    crossed = StoredClip(
        3, ["replace"] * 4, [f"edit {n}" for n in range(4)], clip.source, clip.targets, None,
        pairs=pairs,
    )  # fmt: skip
    write_stored(tmp_path, crossed)
    data = ResidentData((tmp_path,), clips=1, pixels=1, frames=5, edits=4, films=3)
    with ResidentClips(data, CONFIG, torch.device("cpu")) as clips:
        clips.encode_with(autoencoder)
        clips.wait_for(1, seconds=20)
        view = FlowData(Path(), batch=32, frames=2, crop=0, switched=0.0)
        batch, where = clips.draw(np.random.default_rng(0), view, with_pixels=True)
        assert len(where.edit.unique()) == 4
        ends = [tuple(e) for e in clips.ends[0].tolist()]
        assert sorted(ends) == sorted(pairs) and ends[:2] == pairs[:2]
        films = clips.latents[0].float()
        source, target = clips.pictures(where, 0 * batch.corners, (48, 64))
        videos = [clip.source, *clip.targets]
        for row in range(32):
            before, after = ends[where.edit[row]]
            turn = int(where.turn[row])
            assert torch.equal(batch.source[row], films[turn, before])
            assert torch.equal(batch.target[row], films[turn, after])
            for made, film in ((source, before), (target, after)):
                video = videos[film][:, :, ::-1] if turn else videos[film]
                torch.testing.assert_close(made[row, 1], to_pixels(video[1:])[0])
            changed = (source[row] != target[row]).any(1).any(1)[:, ::8, ::8]
            assert torch.equal(changed, batch.edited[row].bool())


def test_drawn_windows_belong_to_their_pixels_and_hold_the_edit(tmp_path, autoencoder):
    for number in (3, 4):
        write_stored(tmp_path, _clip(number, edits=2))
    with _open(tmp_path, wait=2) as clips:
        clips.encode_with(autoencoder)
        clips.wait_for(2, seconds=20)
        view = FlowData(Path(), batch=16, frames=1, crop=4, switched=0.0)
        batch, where = clips.draw(np.random.default_rng(0), view, with_pixels=True)
        assert batch.edited.flatten(1).any(1).all()
        assert torch.equal(batch.past, batch.target)
        whole = clips.latents[where.clip, where.turn, where.edit + 1, where.window[:, 0]].float()
        again = crop(whole[:, None], 2 * batch.corners, 4, 4)
        assert torch.equal(again, batch.target)
        same = clips.draw(np.random.default_rng(0), view, with_pixels=True)[0]
        assert torch.equal(same.target, batch.target)
        # Cells that are edited in latents are edited in the pixels at the same place.
        source, target = clips.pictures(where, 2 * batch.corners * 8, (32, 32))
        changed = (source != target).any(3).any(2)[:, 0].unflatten(1, (4, 8)).unflatten(3, (4, 8))
        assert torch.equal(changed.any(2).any(3), batch.edited[:, 0].bool())


def test_clips_without_pixels_wait_for_the_encoder_and_all_have_latents(tmp_path, autoencoder):
    for number in range(3, 7):
        write_stored(tmp_path, _clip(number))
    data = ResidentData((tmp_path,), clips=4, pixels=1, frames=5, edits=2)
    with ResidentClips(data, CONFIG, torch.device("cpu")) as clips:
        clips.wait_for(4, seconds=20)
        assert clips.count == 1
        clips.encode_with(autoencoder)
        clips.wait_for(4, seconds=20)
        assert clips.count == 4
        assert (clips.latents[:, :, :2].flatten(1) != 0).any(1).all()


def test_shorter_clips_lie_beside_longer_ones(tmp_path, autoencoder):
    long, short = _clip(3), _clip(4)
    films = [np.concatenate([v, v[1:] // 2]) for v in (long.source, *long.targets, long.hand)]
    long = replace(long, source=films[0], targets=films[1:-1], hand=films[-1] > 0)
    write_stored(tmp_path, long)
    write_stored(tmp_path, short)
    data = ResidentData((tmp_path,), clips=4, pixels=4, frames=9, edits=2)
    with ResidentClips(data, CONFIG, torch.device("cpu")) as clips:
        clips.wait_for(2, seconds=20)
        clips.encode_with(autoencoder)
        lengths = clips.length[:2].tolist()
        assert sorted(lengths) == [2, 3]
        seen = set()
        for seed in range(20):
            view = FlowData(Path(), batch=8, frames=1)
            batch, where = clips.draw(np.random.default_rng(seed), view)
            places = zip(where.clip, where.window[:, 0].tolist(), strict=True)
            seen |= {(lengths[clip], place) for clip, place in places}
            assert batch.source.flatten(1).any(1).all()
        assert seen == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}
        _, where = clips.draw(np.random.default_rng(0), FlowData(Path(), batch=8, frames=3))
        assert {lengths[c] for c in where.clip} == {3}
        whole = encode_clip(autoencoder, long, CONFIG).latents[0, 0]
        made = clips.latents[lengths.index(3), 0, 0]
        assert torch.allclose(made.float(), whole.float(), atol=2e-3)


def test_what_does_not_fit_the_clips_is_told(tmp_path, autoencoder):
    write_stored(tmp_path, _clip(3))
    with _open(tmp_path) as clips:
        clips.encode_with(autoencoder)
        with pytest.raises(UserError, match="2 latent frames, not 3"):
            clips.draw(np.random.default_rng(0), FlowData(Path(), frames=3))
        with pytest.raises(UserError, match="multiple of 8"):
            clips.sample(np.random.default_rng(0), 2, 56)


def test_corners_hold_a_wanted_cell_and_stay_inside():
    there = torch.zeros(64, 6, 8, dtype=torch.bool)
    there[:32, 5, 7] = True
    corners = corner_around(there, (4, 4), torch.Generator().manual_seed(0), 0)
    assert (corners[:32] == torch.tensor([2, 4])).all()
    assert (corners >= 0).all() and (corners <= torch.tensor([2, 4])).all()
    assert len(corners[32:].unique(dim=0)) > 4  # anywhere, where nothing is wanted


def test_a_clip_that_cannot_be_read_stops_the_training_with_its_name(tmp_path):
    write_stored(tmp_path, _clip(3))
    (tmp_path / "00000004.safetensors").write_bytes(b"cut short")
    with _open(tmp_path) as clips, pytest.raises(UserError, match="00000004"):
        clips.wait_for(2, seconds=20)
