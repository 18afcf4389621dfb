# SPDX-License-Identifier: Apache-2.0
"""The autoencoder's losses."""

import torch
import torch.nn.functional as F

from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.config import AutoencoderConfig
from egoedit_ros.train.autoencoder import FIT_DRAWS, fit_transform, ssim_loss


def _by_windows(a, b):
    """1 - SSIM with every 7x7 window written out, zeros beyond the edges."""
    a, b = (F.unfold(x.flatten(0, 1), 7, padding=3).unflatten(1, (3, 49)) for x in (a, b))
    ma, mb = a.mean(2), b.mean(2)
    va, vb = a.var(2, unbiased=False), b.var(2, unbiased=False)
    cov = ((a - ma[:, :, None]) * (b - mb[:, :, None])).mean(2)
    like = (2 * ma * mb + 0.02**2) * (2 * cov + 0.06**2)
    return 1 - like / ((ma**2 + mb**2 + 0.02**2) * (va + vb + 0.06**2))


def test_ssim_loss_is_that_of_its_windows():
    made, wanted = torch.rand(2, 2, 1, 3, 16, 24).mul(2).sub(1).unbind(0)
    weight = torch.zeros(2, 1, 16, 24)
    weight[:, :, 4:9, 0:7] = 1  # at an edge
    unlike = _by_windows(made, wanted).mean(1).unflatten(1, (16, 24))
    expected = unlike[:, 4:9, 0:7].mean()
    assert torch.allclose(ssim_loss(made, wanted, weight), expected, atol=1e-5)
    assert ssim_loss(wanted, wanted, weight).abs() < 1e-6


def test_ssim_loss_keeps_its_precision_where_the_rest_is_mixed():
    made = torch.full((1, 1, 3, 16, 16), 0.9)
    made[..., ::2] += 0.01  # a texture that bfloat16 squares would drown
    wanted = made.flip(-1)
    weight = torch.ones(1, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ssim_loss(made, wanted, weight)
    assert torch.allclose(mixed, ssim_loss(made, wanted, weight), atol=1e-4)


def test_the_code_is_found_without_holding_all_that_was_drawn(monkeypatch):
    events, pack = [], EdgeAutoencoder._pack

    class Squares:
        def sample(self, rng):
            events.append("drawn")
            stream = torch.Generator().manual_seed(int(rng.integers(2**31)))
            return tuple(torch.rand(2, 1, 4, 3, 16, 16, generator=stream))

    def packed(self, part, size):
        events.append("summed")
        return pack(self, part, size)

    monkeypatch.setattr(EdgeAutoencoder, "_pack", packed)
    model = EdgeAutoencoder(AutoencoderConfig(latent_channels=4, width=8, deep_width=8))
    fit_transform(model, Squares(), 0)
    assert events == ["drawn", "summed"] * FIT_DRAWS
