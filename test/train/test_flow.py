# SPDX-License-Identifier: Apache-2.0
"""Teacher forcing shows a noisy chunk exactly what the cache shows it in a stream."""

import numpy as np
import torch

from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import TransformerConfig
from egoedit_ros.model.transformer import Transformer, token_grid
from egoedit_ros.train.flow import FlowData, draw_sigma, sample_batch, teacher_attend
from egoedit_ros.train.latents import LatentClip, edited_cells, latent_frames

CONFIG = TransformerConfig(
    layers=3, heads=2, head_dim=24, ffn_dim=32, in_channels=8, out_channels=4, text_dim=8,
    text_len=4, freq_dim=16,
)  # fmt: skip
GRID = (2, 3)


def test_teacher_forcing_equals_the_stream():
    torch.manual_seed(0)
    net = Transformer(CONFIG).eval().requires_grad_(False)
    clean, noisy, source = torch.randn(3, 1, 3, 4, 4, 6).unbind(0)
    sigma = torch.tensor([[1.0, 0.9, 0.6]])
    text = net.text(torch.randn(1, 4, 8))
    half = net.embed(source, 4, bias=False)

    tokens = torch.cat([net.embed(clean[:, :2]) + half[:, :2], net.embed(noisy) + half], 1)
    y, x = token_grid(*GRID, "cpu")
    cos, sin = (a[None, None] for a in net.rope.angles(torch.arange(3), y, x))
    attend = teacher_attend(cos, sin, 2, clean=2, noisy=3, window=2)
    modulation = net.modulation(torch.cat([torch.zeros(1, 2), 1000 * sigma], 1))
    together = net(tokens, modulation, text, attend, GRID)[:, 2:]

    cache = KeyValueCache(net, GRID, 1, 2)
    for i in range(3):
        step = net.modulation(1000 * sigma[:, i : i + 1])
        part = net.embed(noisy[:, i : i + 1]) + half[:, i : i + 1]
        alone = net(part, step, text, cache.attend(store=False), GRID)
        assert (alone - together[:, i : i + 1]).abs().max() <= 1e-5
        part = net.embed(clean[:, i : i + 1]) + half[:, i : i + 1]
        net(part, net.modulation(torch.zeros(1, 1)), text, cache.attend(store=True), GRID)
        cache.advance()


def _clip(seed=0, edits=3, frames=4):
    rng = torch.Generator().manual_seed(seed)
    edited = torch.zeros(2, edits, frames, 24, 32, dtype=torch.bool)
    edited[..., 5:9, 20:26] = True
    latents = torch.randn(2, 1 + edits, frames, 4, 24, 32, generator=rng).half()
    return LatentClip(latents, edited, torch.randn(edits, 4, 8, generator=rng).half())


def test_crops_hold_the_edit_at_its_true_place():
    data = FlowData(latents=None, batch=32, frames=3, crop=16)
    batch = sample_batch(np.random.default_rng(0), [_clip()], data)
    assert batch.source.shape == (32, 3, 4, 16, 16)
    assert batch.edited.flatten(1).any(1).all()
    assert (batch.corners >= 0).all() and (batch.corners[:, 0] <= 4).all()
    clip = _clip().latents[:, 0].float()
    top, left = (2 * batch.corners[0]).tolist()
    window = (
        clip[:, :, :, top : top + 16, left : left + 16].unfold(1, 3, 1).permute(0, 1, 5, 2, 3, 4)
    )
    assert any(torch.equal(batch.source[0], w) for w in window.flatten(0, 1))


def test_the_same_draw_gives_the_same_batch():
    data = FlowData(latents=None, batch=4, crop=0)
    one, other = (sample_batch(np.random.default_rng(7), [_clip()], data) for _ in range(2))
    assert torch.equal(one.target, other.target) and torch.equal(one.past, other.past)
    assert one.source.shape[-2:] == (24, 32)


def test_noise_levels_lean_towards_noise():
    sigma = draw_sigma(torch.Generator().manual_seed(0), (4000,), 5.0)
    assert 0 < sigma.min() and sigma.max() == 1
    assert 0.3 < (sigma == 1).float().mean() < 0.4 and sigma.median() > 0.8


def test_framing_and_edited_cells():
    frames = np.zeros((13, 192, 256, 3), np.uint8)
    assert [len(f) for f in latent_frames(frames)] == [1, 4, 4, 4]
    target = frames.copy()
    target[6, 17, 41] = 200  # third latent frame (5..8), cell row 2, column 5
    cells = edited_cells(frames, target)
    assert cells.shape == (4, 24, 32)
    assert cells.nonzero().tolist() == [[2, 2, 5]]
