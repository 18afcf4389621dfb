# SPDX-License-Identifier: Apache-2.0
"""CLIP figures: right with a model at hand, and no number without one."""

from __future__ import annotations

import numpy as np
import pytest
from bench.clip_support import make_clip

from egoedit_ros.bench.metrics import clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def model(folder):
    return clip.load_clip(clip.Weights(str(folder)), True, "cpu")


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)


def test_the_features_are_those_of_transformers_own_calls(model, frames):
    import torch

    pixels = clip._pixels(model, frames)
    tokens = model.tokenizer(["make the mug blue"], return_tensors="pt")
    with torch.inference_mode():
        out = model.net(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels,
        )
    assert np.allclose(clip.image_features(model, frames), out.image_embeds.numpy(), atol=1e-5)
    text = clip.text_features(model, "make the mug blue")
    assert np.allclose(text, out.text_embeds[0].numpy(), atol=1e-5)
    own = out.logits_per_image.mean().item()
    assert clip.pick_score(model, frames, "make the mug blue") == pytest.approx(own, abs=1e-3)


def test_a_still_clip_is_consistent_and_noise_is_less_so(model, frames):
    still = np.repeat(frames[:1], 4, 0)
    assert clip.temporal_consistency(model, still) == pytest.approx(100, abs=1e-3)
    assert clip.temporal_consistency(model, frames) < 99.99


def test_a_text_longer_than_the_model_takes_is_cut(model, frames):
    assert np.isfinite(clip.pick_score(model, frames, "make the mug blue " * 50))


def test_absent_weights_are_not_available(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(clip.Unavailable, match="not available.*--download"):
        clip.load_clip(clip.Weights("nobody/nothing-of-the-kind"), False, "cpu")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(clip.Unavailable, match="not available"):
        clip.load_clip(clip.Weights(str(empty)), False, "cpu")


def test_weights_of_which_a_part_lacks_are_not_available(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    part = tmp_path / "part"
    shutil.copytree(folder, part)
    state = load_file(part / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(clip.Unavailable, match="visual_projection"):
        clip.load_clip(clip.Weights(str(part)), False, "cpu")


def test_a_broken_file_is_not_available(folder, tmp_path):
    import shutil

    part = tmp_path / "broken"
    shutil.copytree(folder, part)
    (part / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(clip.Unavailable, match="not available"):
        clip.load_clip(clip.Weights(str(part)), False, "cpu")
