# SPDX-License-Identifier: Apache-2.0
"""DMD's gradient against cases worked out by hand, and who learns from what."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from train_support import TINY, VELOCITY, cache_clips, make_clip

from egoedit_ros.errors import UserError
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.train import dmd
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.dmd import (
    DistillData,
    Distiller,
    dmd_gradient,
    dmd_loss,
    rollout_whole,
    score_sigma,
    train_dmd,
)
from egoedit_ros.train.flow import new_transformer
from egoedit_ros.train.loop import TrainSettings
from egoedit_ros.train.parallel import Group

KINDS = pytest.mark.parametrize("config", [TINY, VELOCITY], ids=["anchored", "velocity"])


def test_the_gradient_of_a_case_worked_out_by_hand():
    made = torch.tensor([[1.0, 3.0], [2.0, -2.0]]).reshape(2, 2, 1, 1, 1).requires_grad_()
    fake = torch.tensor([[0.5, 2.0], [1.0, 1.0]]).reshape(made.shape)
    real = torch.tensor([[0.0, 1.0], [1.0, 2.0]]).reshape(made.shape)
    # mean |x - real|: (1 + 2) / 2 and (1 + 4) / 2; fake - real: (0.5, 1) and (0, -1).
    gradient = dmd_gradient(made.detach(), fake, real)
    wanted = torch.tensor([[0.5 / 1.5, 1 / 1.5], [0.0, -1 / 2.5]])
    torch.testing.assert_close(gradient.reshape(2, 2), wanted)
    loss = dmd_loss(made, gradient)
    torch.testing.assert_close(loss.item(), 0.5 * wanted.square().mean().item())
    loss.backward()
    torch.testing.assert_close(made.grad.reshape(2, 2), wanted / 4)


def test_noise_levels_of_the_scores():
    u = torch.linspace(0, 1, 101)
    sigma = score_sigma(u, 5.0)
    assert sigma.min() == pytest.approx(0.02) and sigma.max() == pytest.approx(0.98)
    assert sigma[50] == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))


def _distiller(config, guidance=1.0, crop=0, **more):
    torch.manual_seed(0)
    nets = [Transformer(config.transformer) for _ in range(2)]
    teacher, generator = nets
    real = copy.deepcopy(teacher).requires_grad_(False)
    data = FlowData(latents=None, batch=2, frames=3, crop=crop, attention="bidirectional")
    steps = Distiller(
        generator, real, copy.deepcopy(teacher), config, data,
        DistillData(teacher=None, guidance=guidance, **more), [make_clip()],
        torch.randn(48, 384), Group(), lambda view: rollout_whole(config, 3, bool(view.crop)),
    )  # fmt: skip
    return steps


def _streams(seed=0):
    return np.random.default_rng(seed), torch.Generator().manual_seed(seed)


def _gradients(net):
    return [p.grad for p in net.parameters() if p.grad is not None and p.grad.abs().max() > 0]


@KINDS
def test_scores_that_agree_move_nothing(config):
    steps = _distiller(config)
    loss, report = steps.generator_step(*_streams())
    loss.backward()
    assert loss.item() == 0 and report["gradient"] == 0
    assert not _gradients(steps.generator)


@KINDS
@pytest.mark.parametrize("crop", [0, 4])
def test_guidance_moves_the_generator_and_it_alone(config, crop):
    steps = _distiller(config, guidance=3.0, crop=crop)
    loss, _ = steps.generator_step(*_streams())
    loss.backward()
    assert _gradients(steps.generator)
    assert not _gradients(steps.fake) and not _gradients(steps.real)


@KINDS
def test_the_generators_gradient_is_the_scores_difference_through_the_exit_step(config):
    """The same draw, written out: rollout, noise, both scores, vector-Jacobian product."""
    steps = _distiller(config, guidance=2.0)
    loss, _ = steps.generator_step(*_streams(3))
    loss.backward()
    got = steps.generator.proj_out.weight.grad.clone()
    steps.generator.zero_grad()

    rng, noise = _streams(3)
    _, batch, exit_step, rollout, draw = steps._begin(rng, noise)
    made = rollout(steps.generator, batch, exit_step, draw)
    noisy, sigma = steps._noised(made.detach(), noise)
    from egoedit_ros.train.denoise import Denoiser

    with torch.no_grad():
        empty = steps.empty.expand(2, -1, -1)
        told, untold = (
            Denoiser(steps.real, config, batch.source, text)(noisy, sigma)
            for text in (batch.text, empty)
        )
        real = untold + 2.0 * (told - untold)
        fake = Denoiser(steps.fake, config, batch.source, batch.text)(noisy, sigma)
        size = (made - real).abs().mean((1, 2, 3, 4), keepdim=True)
        pull = (fake - real) / size / made.numel()
    made.backward(pull)
    torch.testing.assert_close(got, steps.generator.proj_out.weight.grad, atol=1e-6, rtol=1e-4)


@KINDS
def test_the_critic_learns_what_the_generator_makes_and_it_alone(config):
    steps = _distiller(config)
    loss, _ = steps.critic_step(*_streams())
    loss.backward()
    assert loss > 0 and _gradients(steps.fake)
    assert not _gradients(steps.generator) and not _gradients(steps.real)
    optimizer = torch.optim.AdamW(steps.fake.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss, _ = steps.critic_step(*_streams(5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_only_the_exit_step_has_a_gradient():
    steps = _distiller(TINY)
    _, batch, _, rollout, draw = steps._begin(*_streams())
    calls = []
    net = steps.generator
    forward = net.forward
    net.forward = lambda *a: calls.append(torch.is_grad_enabled()) or forward(*a)
    for exit_step in range(3):
        calls.clear()
        rollout(net, batch, exit_step, draw)
        assert calls == [False] * exit_step + [True]


def test_many_processes_keep_whole_networks_on_the_host(tmp_path, monkeypatch):
    """And the teacher is shared out before the generator is loaded."""
    torch.manual_seed(1)
    teacher = tmp_path / "teacher.safetensors"
    save_file(Transformer(TINY.transformer).state_dict(), teacher)
    told, trained = [], []

    def shard(group, net):
        told.append("shard")
        trained.append(net)
        return net

    def load(*how):
        told.append("load")
        return new_transformer(*how)

    def trainer(generator, *_, critic, **__):
        trained.extend([generator, critic.net])
        return SimpleNamespace(run=lambda: teacher, done=0)

    # Nothing on the meta device has a value: what came there too early could not be trained.
    monkeypatch.setattr(dmd, "join", lambda _: Group(0, 2, torch.device("meta")))
    monkeypatch.setattr(Group, "shard", shard)
    monkeypatch.setattr(dmd, "new_transformer", load)
    monkeypatch.setattr(dmd, "Trainer", trainer)
    data = FlowData(cache_clips(tmp_path / "latents"), frames=2, attention="bidirectional")
    train_dmd(TrainSettings(tmp_path, "dmd", "tiny", config=TINY), data, DistillData(teacher))
    assert told == ["load", "shard", "load"]
    assert {p.device.type for net in trained for p in net.parameters()} == {"cpu"}
    assert len({id(net) for net in trained}) == 3


def test_a_distilling_stage_resumes_exactly(tmp_path):
    latents = cache_clips(tmp_path / "latents")
    torch.manual_seed(1)
    teacher = tmp_path / "teacher.safetensors"
    save_file(Transformer(TINY.transformer).state_dict(), teacher)
    data = FlowData(latents, batch=2, frames=2, crop=0, attention="bidirectional")
    given = DistillData(teacher, guidance=2.0, nfe=2, target_weight=0.1)

    def settings(folder, steps):
        return TrainSettings(
            tmp_path / folder, "dmd", "tiny", steps=steps, lr=1e-3, warmup=1, critic_steps=2,
            schedule="constant", config=TINY, device="cpu",
        )  # fmt: skip

    whole = load_file(train_dmd(settings("a", 6), data, given))
    train_dmd(settings("b", 3), data, given)
    resumed = load_file(train_dmd(settings("b", 6), data, given))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    before = load_file(teacher)
    assert any(not torch.equal(whole[k], before[k]) for k in whole)
    with pytest.raises(UserError, match="distill.guidance was 2.0, is 3.0"):
        train_dmd(settings("b", 6), data, DistillData(teacher, guidance=3.0, nfe=2,
                                                      target_weight=0.1))  # fmt: skip
