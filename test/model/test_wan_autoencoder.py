# SPDX-License-Identifier: Apache-2.0
"""Streaming through Wan's autoencoder is coding the whole clip."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from egoedit_ros.errors import UserError
from egoedit_ros.model.wan_autoencoder import WanAutoencoder, WanStream, read_wan_autoencoder

pytest.importorskip("diffusers")
SMALL = dict(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.3, -0.2, 0.1, 0.0],
             latents_std=[1.5, 0.7, 2.0, 1.1])  # fmt: skip
# Frames of a first chunk and of the ones after it.
FRAMINGS = [(1, 4), (9, 12), (1, 12), (9, 4)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return WanAutoencoder(**SMALL).eval().requires_grad_(False)


def _clip(count, seed=1):
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _chunks(first, later, count=3):
    ends = [first + later * i for i in range(count)]
    return list(zip([0, *ends], ends, strict=False))


def _whole(model, clip):
    """diffusers' own encode and decode of the clip: normalised latents and pictures."""
    z = model.wan.encode(clip.transpose(0, 1)[None]).latent_dist.mode()
    mean, std = model.scale(z)
    latents = ((z - mean) / std)[0].transpose(0, 1)
    return latents, model.wan.decode(z).sample[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("first", "later", "frame_by_frame"), [(*f, False) for f in FRAMINGS] + [(9, 12, True)]
)
def test_streaming_equals_the_whole_clip(model, first, later, frame_by_frame):
    chunks = _chunks(first, later)
    clip = _clip(chunks[-1][1])
    wanted_latents, wanted = _whole(model, clip)
    stream = WanStream(model, model, frame_by_frame)
    coded = [stream.encode(clip[a:b], a == 0) for a, b in chunks]
    assert (torch.cat([c.latents for c in coded]) - wanted_latents).abs().max() <= 1e-4
    made = [stream.decode(c.latents, c)[0] for c in coded]
    assert [len(m) for m in made] == [b - a for a, b in chunks]
    assert (torch.cat(made) - wanted).abs().max() <= 1e-4


def test_latents_are_normalised(model):
    clip = _clip(1)
    z = model.wan.encode(clip.transpose(0, 1)[None]).latent_dist.mode()[0, :, 0]
    got = model.open_stream().encode(clip, True).latents[0]
    for channel in range(4):
        mean, std = SMALL["latents_mean"][channel], SMALL["latents_std"][channel]
        assert torch.allclose(got[channel], (z[channel] - mean) / std, atol=1e-5)


def test_two_streams_on_one_module_do_not_touch(model):
    mine, yours = _clip(9, 1), _clip(9, 2)
    parts = [slice(0, 1), slice(1, 5), slice(5, 9)]

    def run(stream, clip, part):
        coded = stream.encode(clip[part], part.start == 0)
        return stream.decode(coded.latents, coded)[0]

    alone = model.open_stream()
    wanted = [run(alone, mine, p) for p in parts]
    a, b = model.open_stream(), model.open_stream()
    for part, want in zip(parts, wanted, strict=True):
        got = run(a, mine, part)
        run(b, yours, part)
        assert torch.equal(got, want)


def test_a_first_chunk_forgets_the_stream_before_and_memory_stays_level(model):
    stream, clip = model.open_stream(), _clip(9)
    assert stream.memory_bytes() == 0
    sizes, results = [], []
    for _ in range(2):
        for part in (slice(0, 1), slice(1, 5), slice(5, 9)):
            coded = stream.encode(clip[part], part.start == 0)
            made, mask = stream.decode(coded.latents, coded)
        sizes.append(stream.memory_bytes())
        results.append(made)
    assert mask is None
    assert torch.equal(*results) and sizes[0] == sizes[1] > 0


def test_a_diffusers_folder_is_read(model, tmp_path):
    model.wan.save_pretrained(tmp_path / "vae")
    read = read_wan_autoencoder(tmp_path)
    clip = _clip(1)
    wanted = model.open_stream().encode(clip, True).latents
    assert torch.equal(read.open_stream().encode(clip, True).latents, wanted)


def test_what_is_no_such_autoencoder_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        read_wan_autoencoder(tmp_path)
    model.wan.save_pretrained(tmp_path)
    file, path = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    tensors = load_file(file)
    save_file(tensors | {"quant_conv.bias": torch.full((8,), float("nan"))}, file)
    with pytest.raises(UserError, match="NaN"):
        read_wan_autoencoder(tmp_path)
    del tensors["quant_conv.bias"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"missing 1 \(quant_conv.bias\)"):
        read_wan_autoencoder(tmp_path)
    path.write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="not an AutoencoderKLWan"):
        read_wan_autoencoder(tmp_path)
    with pytest.raises(UserError, match="Wan 2.2"):
        WanAutoencoder(**SMALL, patch_size=2, scale_factor_spatial=16)
