# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from egoedit_ros.model.flow import add_noise, step_sigmas, to_clean


def test_four_steps_at_shift_five_are_those_of_self_forcing():
    assert step_sigmas(4, 5.0) == pytest.approx([1.0, 0.9375, 0.83333, 0.625], abs=1e-4)


def test_the_true_velocity_leads_back_to_the_data():
    data, noise, source = torch.randn(3, 2, 4, 4)
    for sigma in (0.2, 0.7, 1.0):
        noisy = add_noise(data, noise, sigma)
        assert torch.allclose(
            to_clean(noise - data, noisy, sigma, source, anchored=False), data, atol=1e-6
        )


def test_anchored_zero_means_no_change():
    noisy, source = torch.randn(2, 2, 4, 4)
    assert torch.equal(to_clean(torch.zeros_like(noisy), noisy, 1.0, source, True), source)


def test_gates_take_a_band_of_the_source_away_cell_by_cell():
    source = torch.rand(1, 2, 14, 3, 4) + 1
    output = torch.zeros(1, 2, 14 + 3, 3, 4)
    assert torch.equal(to_clean(output, source, 1.0, source, anchored=True), source)
    output[:, :, 15, 1, 2] = 1  # the second of three bands: channels 2 to 5
    output[:, :, :14, 1, 2] = 0.5
    clean = to_clean(output, source, 1.0, source, anchored=True)
    wanted = source.clone()
    wanted[:, :, 2:6, 1, 2] = 0
    wanted[:, :, :, 1, 2] += 0.5
    assert torch.equal(clean, wanted)
