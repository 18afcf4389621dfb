# SPDX-License-Identifier: Apache-2.0
"""The tiny autoencoder: published names and shapes, and streaming is coding the whole clip."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from egoedit_ros.errors import UserError
from egoedit_ros.model.taehv import TinyAutoencoder, read_tiny_autoencoder

FRAMINGS = [(1, 4), (9, 12), (1, 8), (9, 4)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyAutoencoder().eval().requires_grad_(False)


def _whole(layers, x):
    """All frames at once, block by block, from the published description alone."""
    for layer in layers:
        kind = type(layer).__name__
        if kind == "MemoryBlock":
            before = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
            x = torch.relu(layer.conv(torch.cat([x, before], 1)) + x)
        elif kind == "TimePool":
            t, c, h, w = x.shape
            x = layer.conv(x.reshape(t // layer.stride, layer.stride * c, h, w))
        elif kind == "TimeGrow":
            t, c, h, w = x.shape
            x = layer.conv(x).reshape(-1, c, h, w)
        else:
            x = layer(x)
    return x


def _encode_whole(model, clip):
    """Of 0..1 frames, the last repeated to a multiple of four."""
    missing = -len(clip) % 4
    return _whole(model.encoder, torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)]))


def _clip(count, seed=1):
    return torch.rand(count, 3, 8, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("first", "later"), FRAMINGS)
def test_decoding_a_stream_equals_the_whole_clip(model, first, later):
    counts = [first, later, later, later]
    stream = model.open_stream()
    coded = [stream.encode(_clip(n, i) * 2 - 1, i == 0) for i, n in enumerate(counts)]
    made = [stream.decode(c.latents, c)[0] for c in coded]
    assert [len(m) for m in made] == counts
    wanted = _whole(model.decoder, torch.cat([c.latents for c in coded]))[3:].clamp(0, 1)
    assert ((torch.cat(made) + 1) / 2 - wanted).abs().max() <= 1e-4


@pytest.mark.parametrize(("first", "later"), FRAMINGS)
def test_encoding_a_stream_equals_the_clip_so_far(model, first, later):
    # The published use repeats the last frame; in a stream each chunk's last frame is the last.
    ends = [first + later * i for i in range(4)]
    clip, stream, begin = _clip(ends[-1]), model.open_stream(), 0
    for end in ends:
        got = stream.encode(clip[begin:end] * 2 - 1, begin == 0).latents
        wanted = _encode_whole(model, clip[:end])[-len(got) :]
        assert len(got) == (end - begin + 3) // 4
        assert (got - wanted).abs().max() <= 1e-4
        begin = end


def test_a_first_chunk_forgets_and_memory_stays_level(model):
    stream, clip = model.open_stream(), _clip(9) * 2 - 1
    results, sizes = [], []
    for _ in range(2):
        for part in (slice(0, 1), slice(1, 5), slice(5, 9)):
            coded = stream.encode(clip[part], part.start == 0)
            made, mask = stream.decode(coded.latents, coded)
        results.append(made)
        sizes.append(stream.memory_bytes())
    assert mask is None and torch.equal(*results) and sizes[0] == sizes[1]


def test_names_and_shapes_are_the_published_ones(model):
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    conv, pool, memory = (64, 64, 3, 3), (64, 128, 1, 1), (64, 128, 3, 3)
    assert shapes["encoder.0.weight"] == (64, 3, 3, 3)
    assert shapes["encoder.2.conv.weight"] == shapes["encoder.7.conv.weight"] == pool
    assert shapes["encoder.12.conv.weight"] == (64, 64, 1, 1)
    assert shapes["encoder.3.weight"] == shapes["encoder.13.weight"] == conv
    assert shapes["encoder.16.conv.0.weight"] == memory
    assert shapes["encoder.17.weight"] == (16, 64, 3, 3)
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.5.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.8.weight"] == (128, 256, 3, 3)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    bare = {n for n in shapes if n.count(".") == 2}  # no biases around pooling and growing
    assert "encoder.3.bias" not in bare and "decoder.20.bias" not in bare
    assert sum(p.numel() for p in model.parameters()) == 11_315_539


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_file_is_read(model, tmp_path, kind):
    path = tmp_path / f"taew2_1.{kind}"
    state = {k: v.half() for k, v in model.state_dict().items()}
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    read = read_tiny_autoencoder(path)
    assert all(torch.equal(v, state[k].float()) for k, v in read.state_dict().items())


def test_other_files_are_refused(model, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="no tiny autoencoder"):
        read_tiny_autoencoder(path)
    state = dict(model.state_dict())
    del state["decoder.22.bias"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"missing 1 \(decoder.22.bias\)"):
        read_tiny_autoencoder(path)
