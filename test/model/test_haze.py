# SPDX-License-Identifier: Apache-2.0
"""Beside a body's outline what is decoded of it is taken away; all else stays."""

import pytest
import torch

from egoedit_ros.model.haze import Laid, cleared

SIDE = 48
TABLE, WHITE, BLUE = (
    torch.tensor(c)[:, None, None] for c in ([0.3, 0.4, 0.3], [0.95] * 3, [0.1, 0.2, 0.9])
)


def _picture(around, camera=0.0):
    """A white body on a table; three pixels around it ``around`` is shown, made but for how far it
    is the camera's: colours, shares, within."""
    within = torch.zeros(1, 1, SIDE, SIDE)
    within[..., 16:32, 16:32] = 1
    wider = torch.zeros(1, SIDE, SIDE)
    wider[:, 13:35, 13:35] = 1
    ring = wider - within[0]
    made = TABLE * (1 - wider) + around * ring + WHITE * within[0]
    colors = torch.stack([made, made, WHITE.expand_as(made)])[None]
    shares = torch.zeros(1, 3, SIDE, SIDE)
    shares[:, 2] = within[:, 0]
    shares[:, 0] = 1 - wider + camera * ring
    shares[:, 1] = (1 - camera) * ring
    return colors, shares, within


def _cleared(around, camera=0.0, heeded=1.0):
    colors, shares, within = _picture(around, camera)
    got, share = cleared(colors, shares, [Laid(within, 2, heeded)])
    torch.testing.assert_close(share.sum(1), torch.ones(1, SIDE, SIDE))
    before = (shares[:, :, None] * colors).sum(1)
    return (share[:, :, None] * got).sum(1)[0], before[0], within[0, 0] > 0


@pytest.mark.parametrize("much", [0.4, 1.0])
def test_a_halo_of_the_body_is_taken_away(much):
    shown, before, within = _cleared(TABLE + much * (WHITE - TABLE))
    assert (before - TABLE).abs()[:, ~within].max() > 0.2
    assert (shown - TABLE).abs()[:, ~within].max() < 0.05
    assert torch.equal(shown[:, within], before[:, within])


def test_what_is_neither_the_body_nor_behind_it_is_taken_away():
    shown, _, within = _cleared(BLUE)
    assert (shown - TABLE).abs()[:, ~within].max() < 0.05


@pytest.mark.parametrize(
    ("around", "camera", "heeded"),
    [(0.6 * TABLE, 0.0, 1.0), (WHITE, 1.0, 1.0), (WHITE, 0.0, 0.0)],
)
def test_a_shadow_and_the_cameras_picture_and_what_is_not_heeded_stay(around, camera, heeded):
    shown, before, _ = _cleared(around, camera, heeded)
    assert (shown - before).abs().max() < 0.02
