# SPDX-License-Identifier: Apache-2.0
"""Stored clips of any origin to latents: what is encoded, what is mirrored, one file or shards."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from train_support import TINY, VELOCITY

from egoedit_ros.data.clip import StoredClip, write_stored
from egoedit_ros.data.latents import LatentFolder
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.wan_autoencoder import WanAutoencoder
from egoedit_ros.train.latents import MADE_BY, cache_latents, encode_clip, load_latents

WAN = dict(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.3, -0.2, 0.1, 0.0],
             latents_std=[1.5, 0.7, 2.0, 1.1])  # fmt: skip
# Frames of a first chunk and of the ones after it.
FRAMINGS = [(1, 4), (9, 12), (1, 12), (9, 4)]


def stored(number=0, frames=5, texts=("make it red",), origin="here"):
    rng = np.random.default_rng(number)
    source = rng.integers(0, 200, (frames, 48, 64, 3), np.uint8)
    targets = []
    for i in range(len(texts)):
        target = source.copy()
        target[:, 8 * i : 8 * i + 8, :8] += 40
        targets.append(target)
    return StoredClip(number, ["replace"] * len(texts), list(texts), source, targets, None, origin)


@pytest.fixture(scope="module")
def edge():
    torch.manual_seed(0)
    return EdgeAutoencoder(TINY.autoencoder).eval().requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_pictures_and_videos_are_encoded_both_ways_round(edge, frames):
    clip = encode_clip(edge, stored(frames=frames, texts=("make it red", "hide it")), TINY)
    assert clip.latents.shape == (2, 3, 1 + (frames - 1) // 4, 4, 6, 8)
    assert clip.text.shape == (2, 48, 384) and clip.tasks == ("replace", "replace")
    assert clip.edited[0, 1].nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 0]]
    assert clip.edited[1, 1].nonzero()[:, 1:].unique(dim=0).tolist() == [[1, 7]]


def test_what_tells_left_from_right_is_not_mirrored(edge):
    clip = encode_clip(edge, stored(texts=("add a can to the left of the mug",)), TINY)
    assert torch.equal(clip.latents[0], clip.latents[1])
    other = encode_clip(edge, stored(texts=("add a can behind the mug",)), TINY)
    assert not torch.equal(other.latents[0], other.latents[1])


def test_a_still_picture_lasts_as_a_still_video_would(edge):
    still = stored(frames=1)
    video = StoredClip(
        0, still.tasks, still.instructions, still.source.repeat(9, 0),
        [t.repeat(9, 0) for t in still.targets], None,
    )  # fmt: skip
    one, other = (encode_clip(edge, c, TINY) for c in (still, video))
    assert (one.lasting(3).latents - other.latents).abs().max() < 0.01
    assert torch.equal(one.lasting(3).edited, other.edited)


def test_any_streaming_autoencoder_encodes():
    torch.manual_seed(0)
    wan = WanAutoencoder(**WAN).eval().requires_grad_(False)
    clip = encode_clip(wan, stored(frames=9), VELOCITY)
    assert clip.latents.shape == (2, 2, 3, 4, 6, 8)
    # As in a stream, the past does not depend on the future.
    whole = stored(frames=9)
    begun = StoredClip(0, ["x"], ["y"], whole.source[:5], [whole.targets[0][:5]], None)
    short = encode_clip(wan, begun, VELOCITY).latents
    assert (short - clip.latents[:, :, :2]).abs().max() < 0.01


def test_clips_become_shards_and_later_ones_are_added(edge, tmp_path):
    clips, output = tmp_path / "clips", tmp_path / "latents"
    clips.mkdir()
    save_file(edge.state_dict(), tmp_path / "ae.safetensors")
    for number in (0, 1, 2, 1_000_000):
        write_stored(clips, stored(number))
    done = list(cache_latents(tmp_path / "ae.safetensors", TINY, clips, output, 1, shard=2))
    assert done == [(0, 3), (2, 3), (3, 3)]  # what is for evaluation stays out
    names = sorted(p.name for p in output.iterdir())
    assert names == [MADE_BY, "shard-00000000.safetensors", "shard-00000002.safetensors"]
    folder = LatentFolder(output)
    assert folder.stems == ["00000000", "00000001", "00000002"]
    direct = encode_clip(edge, stored(1), TINY)
    assert (folder[1].latents - direct.latents).abs().max() < 0.05
    assert torch.equal(folder[1].edited, direct.edited) and folder[1].tasks == ("replace",)
    assert len(load_latents(output)) == 3
    assert list(cache_latents(tmp_path / "ae.safetensors", TINY, clips, output, 1)) == [(3, 3)]


def _encode(tmp_path, autoencoder="ae", config=TINY):
    return list(
        cache_latents(
            tmp_path / f"{autoencoder}.safetensors", config, tmp_path / "clips", tmp_path / "out", 1
        )
    )


@pytest.fixture
def encoded(edge, tmp_path):
    """A folder in which one clip of two is encoded, and weights with another code."""
    (tmp_path / "clips").mkdir()
    state = edge.state_dict()
    for name, change in (("ae", {}), ("on", {"decoder_out.bias": state["decoder_out.bias"] + 1}),
                         ("other", {"basis": -state["basis"]})):  # fmt: skip
        save_file(state | change, tmp_path / f"{name}.safetensors")
    write_stored(tmp_path / "clips", stored(0))
    assert _encode(tmp_path) == [(0, 1), (1, 1)]
    write_stored(tmp_path / "clips", stored(1))
    return tmp_path


def test_latents_of_several_encoders_are_never_mixed(encoded):
    with pytest.raises(UserError, match="autoencoder was .* delete this one"):
        _encode(encoded, "other")
    short = dataclasses.replace(TINY.transformer, text_len=32)
    for change in ({"size": (128, 96)}, {"text_encoder": "clip"}, {"transformer": short}):
        with pytest.raises(UserError, match="were made otherwise"):
            _encode(encoded, config=dataclasses.replace(TINY, **change))
    assert len(load_latents(encoded / "out")) == 1


def test_a_decoder_that_learnt_on_keeps_the_latents(encoded):
    assert _encode(encoded, "on") == [(1, 2), (2, 2)]


def test_folders_of_before_are_taken_as_they_are_and_empty_ones_made_anew(encoded):
    note = encoded / "out" / MADE_BY
    kept = note.read_text()
    note.unlink()
    assert _encode(encoded, "other") == [(1, 2), (2, 2)]
    assert not note.exists()
    note.write_text(kept)
    for path in (encoded / "out").glob("*.safetensors"):
        path.unlink()
    assert _encode(encoded, "other") == [(0, 2), (1, 2), (2, 2)]
    assert note.read_text() != kept


def test_nothing_to_encode_is_said(tmp_path):
    with pytest.raises(UserError, match="no clips in"):
        list(cache_latents(tmp_path / "ae.safetensors", TINY, tmp_path, tmp_path / "out"))
