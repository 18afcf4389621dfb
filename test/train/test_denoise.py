# SPDX-License-Identifier: Apache-2.0
"""The denoiser of whole clips, guidance, and the samplers against what is known exactly."""

import pytest
import torch
from train_support import TINY, VELOCITY

from egoedit_ros.model.flow import add_noise
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.train.denoise import Denoiser, euler, few_steps, guided, velocity


def _given(frames=3):
    torch.manual_seed(0)
    source, noisy = torch.randn(2, 2, frames, 4, 6, 8).unbind(0)
    return source, noisy, torch.randn(2, 5, 384), torch.rand(2, frames) * 0.8 + 0.1


@pytest.mark.parametrize("config", [TINY, VELOCITY], ids=["anchored", "velocity"])
def test_both_kinds_of_networks_give_clean_latents(config):
    source, noisy, text, sigma = _given()
    net = Transformer(config.transformer).requires_grad_(False)
    torch.nn.init.zeros_(net.proj_out.weight)
    torch.nn.init.ones_(net.proj_out.bias)  # says 1 everywhere
    clean = Denoiser(net, config, source, text)(noisy, sigma)
    level = sigma[..., None, None, None]
    # The gates say 1 as well: nothing of the source is left.
    wanted = torch.ones_like(source) if config.transformer.anchored else noisy - level
    torch.testing.assert_close(clean, wanted)
    torch.testing.assert_close(noisy - level * velocity(clean, noisy, sigma), clean)


def test_bidirectional_sees_the_future_and_causal_its_window_only():
    source, noisy, text, sigma = _given(frames=4)
    net = Transformer(TINY.transformer).requires_grad_(False)

    def moved(frame, **how):
        """Which frames' answers change with the noisy latents of one."""
        denoise = Denoiser(net, TINY, source, text, **how)
        other = noisy.clone()
        other[:, frame] += 1
        return (
            (denoise(noisy, sigma) - denoise(other, sigma)).abs().amax((0, 2, 3, 4)) > 0
        ).tolist()

    assert moved(3) == [True] * 4
    assert moved(3, chunk=1, window=2) == [False, False, False, True]
    assert moved(2, chunk=2, window=2) == [False, False, True, True]
    # Two layers look back twice as far as the window of one.
    assert moved(0, chunk=1, window=1) == [True, True, True, False]


def test_guidance_is_the_same_on_clean_latents_and_on_velocities():
    source, noisy, text, sigma = _given()
    a, b = torch.randn(2, *noisy.shape).unbind(0)
    got = guided(lambda *_: a, lambda *_: b, 3.0)(noisy, sigma)
    va, vb = velocity(a, noisy, sigma), velocity(b, noisy, sigma)
    level = sigma[..., None, None, None]
    torch.testing.assert_close(got, noisy - level * (vb + 3 * (va - vb)))
    assert guided(lambda *_: a, None, 3.0)(noisy, sigma) is a
    assert guided(lambda *_: a, lambda *_: b, 1.0)(noisy, sigma) is a


def test_euler_follows_the_flow_of_a_gaussian():
    """Data of deviation 0.5 about 2: the flow takes noise n to 2 + n / 2."""

    def exact(x, sigma):
        level = sigma[..., None, None, None]
        gain = 0.25 * (1 - level) / (0.25 * (1 - level) ** 2 + level**2)
        return 2 + gain * (x - 2 * (1 - level))

    torch.manual_seed(0)
    noise = torch.randn(4, 1, 2, 2, 2)
    errors = [(euler(exact, noise, n, 3.0) - (2 + noise / 2)).abs().max() for n in (10, 40, 160)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.02


def test_few_steps_renoise_with_fresh_noise():
    target = torch.full((1, 2, 1, 2, 2), 3.0)
    drawn, seen = [], []

    def draw():
        drawn.append(torch.randn(target.shape))
        return drawn[-1]

    def denoise(x, sigma):
        seen.append((x, sigma.item()))
        return target

    assert torch.equal(few_steps(denoise, target.shape, draw, 4, 5.0), target)
    assert len(drawn) == 4
    assert [round(s, 4) for _, s in seen] == [1.0, 0.9375, 0.8333, 0.625]
    for (x, sigma), noise in zip(seen[1:], drawn[1:], strict=True):
        torch.testing.assert_close(x, add_noise(target, noise, sigma))
