# SPDX-License-Identifier: Apache-2.0
"""Teacher forcing shows a noisy chunk exactly what the cache shows it in a stream."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from train_support import TINY, VELOCITY, cache_clips, make_clip

from egoedit_ros.data.latents import LatentClip
from egoedit_ros.errors import UserError
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import TransformerConfig
from egoedit_ros.model.transformer import Transformer, token_grid
from egoedit_ros.train.batches import FlowData, open_clips, sample_batch
from egoedit_ros.train.flow import (
    add_mask_head,
    draw_sigma,
    empty_text,
    flow_loss,
    new_transformer,
    teacher_attend,
    train_flow,
)
from egoedit_ros.train.latents import edited_cells, latent_frames
from egoedit_ros.train.loop import TrainSettings
from egoedit_ros.train.parallel import Group

CONFIG = TransformerConfig(
    layers=3, heads=2, head_dim=24, ffn_dim=32, in_channels=8, out_channels=4, text_dim=8,
    text_len=4, freq_dim=16,
)  # fmt: skip
GRID = (2, 3)


@pytest.mark.parametrize("chunk", [1, 2])
def test_teacher_forcing_equals_the_stream(chunk):
    torch.manual_seed(0)
    net = Transformer(CONFIG).eval().requires_grad_(False)
    clean, noisy, source = torch.randn(3, 1, 3 * chunk, 4, 4, 6).unbind(0)
    sigma = torch.tensor([[1.0, 0.9, 0.6]]).repeat_interleave(chunk, 1)
    text = net.text(torch.randn(1, 4, 8))
    half = net.embed(source, 4, bias=False)

    past = 2 * chunk
    tokens = torch.cat([net.embed(clean[:, :past]) + half[:, :past], net.embed(noisy) + half], 1)
    y, x = token_grid(*GRID, "cpu")
    cos, sin = (a[None, None] for a in net.rope.angles(torch.arange(3 * chunk), y, x))
    attend = teacher_attend(cos, sin, 2, clean=2, noisy=3, window=2, chunk=chunk)
    modulation = net.modulation(torch.cat([torch.zeros(1, past), 1000 * sigma], 1))
    together = net(tokens, modulation, text, attend, GRID)[:, past:]

    cache = KeyValueCache(net, GRID, chunk, 2)
    for i in range(3):
        here = slice(i * chunk, (i + 1) * chunk)
        step = net.modulation(1000 * sigma[:, here])
        part = net.embed(noisy[:, here]) + half[:, here]
        alone = net(part, step, text, cache.attend(store=False), GRID)
        assert (alone - together[:, here]).abs().max() <= 1e-5
        part = net.embed(clean[:, here]) + half[:, here]
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


def _loss(config=TINY, seed=0, net=None, clip=None, **more):
    data = FlowData(latents=None, **{"batch": 2, "frames": 2, "crop": 0} | more)
    data.check()
    batch = sample_batch(np.random.default_rng(0), [clip or make_clip()], data)
    torch.manual_seed(0)
    net = net or new_transformer(config, None, Group())
    return flow_loss(net, config, batch, torch.Generator().manual_seed(seed), data), batch


@pytest.mark.parametrize("more", [{"attention": "bidirectional"}, {"forcing": "diffusion"}, {}])
def test_a_network_that_changes_nothing_has_the_loss_of_the_source(more):
    """Anchored, and zero at the start: the clean latents are the source, whatever the noise."""
    (loss, report), batch = _loss(**more)
    weight = 1 + 4 * batch.edited.unsqueeze(2)
    wanted = ((batch.source - batch.target).square() * weight).mean()
    torch.testing.assert_close(loss, wanted)
    assert report["latent_gain"].abs() < 1e-5


def test_the_velocity_loss_is_the_velocitys_error():
    """A network that says 0: the loss is the mean square of noise - data."""
    (loss, _), batch = _loss(VELOCITY, attention="bidirectional", edited_weight=1.0)
    rng = torch.Generator().manual_seed(0)
    draw_sigma(rng, (2, 1), 5.0)
    noise = torch.randn(batch.target.shape, generator=rng)
    torch.testing.assert_close(loss, (noise - batch.target).square().mean())


def test_noise_levels_are_drawn_as_configured():
    rng = torch.Generator().manual_seed(0)
    sigma = draw_sigma(rng, (4000,), 1.0, mean=-1.0, std=0.5, pure=0.0)
    logits = torch.logit(sigma)
    assert logits.mean() == pytest.approx(-1.0, abs=0.03)
    assert logits.std() == pytest.approx(0.5, abs=0.03)


def test_the_text_is_left_out_as_often_as_asked_for():
    empty = torch.full((48, 384), 0.5)
    data = FlowData(latents=None, batch=400, frames=1, crop=0, text_dropout=0.2)
    batch = sample_batch(np.random.default_rng(0), [make_clip()], data, empty=empty)
    share = (batch.text == 0.5).flatten(1).all(1).float().mean()
    assert 0.14 < share < 0.26
    plain = dataclasses.replace(data, text_dropout=0.0)
    same = sample_batch(np.random.default_rng(0), [make_clip()], plain)
    assert torch.equal(same.source, batch.source)


def test_the_empty_text_is_what_the_encoder_says_of_nothing():
    assert empty_text(TINY).shape == (48, 384) and empty_text(TINY).abs().max() > 0


def test_two_processes_share_one_batch():
    data = FlowData(latents=None, batch=4, frames=2, crop=4)
    clips = [make_clip(s) for s in range(3)]
    draw = lambda group: sample_batch(np.random.default_rng(1), clips, data, group)  # noqa: E731
    whole = draw(Group())
    for rank in range(2):
        part = draw(Group(rank, 2))
        assert torch.equal(part.target, whole.target[rank::2])
        assert torch.equal(part.corners, whole.corners[rank::2])
    with pytest.raises(UserError, match="batch of 4 cannot be shared by 3"):
        draw(Group(0, 3))


@pytest.mark.parametrize(
    ("attention", "mask_layer"), [("bidirectional", 0), ("causal", 0), ("causal", 1)]
)
def test_a_stage_trains_and_resumes_exactly(tmp_path, attention, mask_layer):
    from safetensors.torch import load_file

    data = FlowData(
        cache_clips(tmp_path / "latents"), batch=2, frames=2, crop=4, attention=attention,
        text_dropout=0.3, mask_layer=mask_layer, anywhere=0.3,
    )  # fmt: skip

    def settings(folder, steps):
        return TrainSettings(
            tmp_path / folder, "flow", "tiny", steps=steps, lr=1e-2, warmup=1, config=TINY,
            schedule="constant", device="cpu",
        )  # fmt: skip

    whole = load_file(train_flow(settings("a", 6), data))
    train_flow(settings("b", 3), data)
    resumed = load_file(train_flow(settings("b", 6), data))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert whole["proj_out.weight"].abs().max() > 0
    # What only helps to train is no part of the network that comes out.
    assert whole.keys() == Transformer(TINY.transformer).state_dict().keys()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"attention": "sideways"}, "use one of: causal, bidirectional"),
        ({"forcing": "student"}, "use one of: teacher, diffusion"),
        ({"text_dropout": 2.0}, "text_dropout is 2.0"),
        ({"views": ({"batch": 2},)}, "must have a weight"),
        ({"views": ({"weight": 1, "wings": 2},)}, "must have a weight"),
        ({"crop": 7}, "crop even"),
    ],
)
def test_data_settings_that_mean_nothing(more, says):
    with pytest.raises(UserError, match=says):
        _loss(**more)


def test_the_mask_head_learns_where_the_edit_is():
    torch.manual_seed(0)
    net = Transformer(TINY.transformer)
    data = FlowData(Path(), batch=4, frames=1, crop=0, mask_layer=1)
    head = add_mask_head(net, data, Group())
    batch = sample_batch(np.random.default_rng(0), [make_clip(1), make_clip(2)], data)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    losses = []
    for _ in range(40):
        flow_loss(net, TINY, batch, torch.Generator().manual_seed(0), data, mask=head)
        flow_loss(net, TINY, batch, torch.Generator().manual_seed(0), data)  # is another forward
        losses.append(head.loss(batch.edited))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_edits_are_drawn_as_often_as_asked_and_crops_lie_anywhere():
    clip = make_clip(1)
    rng = np.random.default_rng(0)
    data = FlowData(Path(), batch=60, frames=1, crop=4)
    edits = len(clip.text)
    only = dataclasses.replace(data, edit_weights=(*[0.0] * (edits - 1), 1.0))
    assert torch.equal(
        sample_batch(rng, [clip], only).text, clip.text[-1].float().expand(60, -1, -1)
    )
    clip.edited[:] = False
    clip.edited[..., 0, 0] = True
    around = sample_batch(rng, [clip], data).corners
    anywhere = sample_batch(rng, [clip], dataclasses.replace(data, anywhere=1.0)).corners
    assert around.max() == 0
    assert anywhere.max() > 0


def test_texts_are_left_out_where_a_view_alone_asks_for_it(tmp_path):
    view = {"weight": 1.0, "text_dropout": 0.5}
    data = FlowData(cache_clips(tmp_path / "latents"), batch=2, frames=2, crop=4, views=(view,))
    settings = TrainSettings(tmp_path / "a", "flow", "tiny", steps=1, config=TINY, device="cpu")
    assert train_flow(settings, data).is_file()


@pytest.mark.parametrize("mask_layer", [-1, 99])
def test_a_mask_head_after_no_block_is_refused(mask_layer):
    with pytest.raises(UserError, match=f"mask_layer is {mask_layer}"):
        add_mask_head(
            Transformer(TINY.transformer), FlowData(Path(), mask_layer=mask_layer), Group()
        )


def test_short_clips_are_left_out_and_missed_when_all_are_short(tmp_path):
    cache_clips(tmp_path, count=2, frames=3)
    longer = make_clip(9, frames=5)
    data = FlowData(tmp_path, frames=4, crop=0)
    with pytest.raises(UserError, match="longest clip .* has 3 latent frames, the recipe wants 4"):
        open_clips(data, 0)
    from safetensors.torch import save_file

    tensors = {n: getattr(longer, n) for n in ("latents", "edited", "text")}
    save_file(tensors, tmp_path / "00000009.safetensors")
    assert [c.latents.shape[2] for c in open_clips(data, 0)] == [5]


def test_a_mixture_is_read_in_the_steps_order_and_each_process_reads_its_share(tmp_path):
    for name in ("a", "b"):
        cache_clips(tmp_path / name, count=4)
    sources = tuple({"latents": str(tmp_path / n), "weight": 1} for n in ("a", "b"))
    data = FlowData(tmp_path, batch=4, frames=2, crop=4, sources=sources, workers=0)

    def draw(step, group):
        clips = open_clips(data, 3, group)
        clips.go_to(step)
        return sample_batch(np.random.default_rng(step), clips, data, group)

    whole = draw(5, Group())
    assert torch.equal(whole.target, draw(5, Group()).target)
    assert not torch.equal(whole.target, draw(6, Group()).target)
    for rank in range(2):
        assert torch.equal(draw(5, Group(rank, 2)).target, whole.target[rank::2])
    clips = open_clips(data, 3)
    for step in (4, 5, 5):  # read ahead, and twice in one step
        clips.go_to(step)
    again = sample_batch(np.random.default_rng(5), clips, data)
    assert torch.equal(whole.target, again.target)


def test_frames_that_fill_no_chunk_are_refused():
    config = dataclasses.replace(TINY, chunk_latents=3)
    with pytest.raises(UserError, match="no whole number of chunks of 3"):
        _loss(config, frames=4)
