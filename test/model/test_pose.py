# SPDX-License-Identifier: Apache-2.0
"""Where bodies are in a picture, and which lines through them its pixels look along."""

import math

import numpy as np
import torch

from egoedit_ros.model.pose import FRAME, POSE, mirrored, moved, shifted, sight


def _pose():
    """A thing turned by 0.4 rad, seen from above and the side, at (20, 12); the hand at (9, 30)."""
    yaw, tilt, unit = 0.4, 0.6, 15.0
    turn = np.array(
        [[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
    )
    right, down = np.array([1, 0, 0]), np.array([0, -math.sin(tilt), -math.cos(tilt)])
    slope = unit * np.stack([right @ turn, down @ turn])
    thing = np.concatenate([[20, 12], slope.ravel(), np.cross(right, down) @ turn])
    hand = np.concatenate([[9, 30], 0.8 * slope.ravel()[::-1], [0, 0, 1]])
    return torch.from_numpy(np.concatenate([thing, hand, [0.3]])).float()[None]


def test_where_a_pixel_looks_is_seen_at_that_pixel():
    frame = _pose()[:, :FRAME]
    points = sight(frame, (24, 32), 1)
    slope = frame[:, 2:8].unflatten(1, (2, 3))
    y, x = np.mgrid[:24, :32]
    back = (slope @ points + frame[:, :2, None])[0].numpy()
    np.testing.assert_allclose(back, np.stack([x, y]).reshape(2, -1), atol=0.05)
    assert points[0, :, 12 * 32 + 20].norm() < 1e-6  # the origin's pixel
    assert (frame[:, None, 8:] @ points).abs().max() < 1e-3  # of each line the nearest point


def test_cells_look_along_what_their_middle_pixels_do():
    frame = _pose()[:, :FRAME]
    fine = sight(frame, (24, 32), 1).unflatten(2, (24, 32))
    coarse = sight(frame, (12, 16), 2).unflatten(2, (12, 16))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 2), coarse)


def test_in_a_turned_picture_the_same_is_seen_at_the_turned_place():
    pose = _pose()[0].numpy()
    matrix = np.array([[0.8, -0.3, 4.0], [0.2, 1.1, -2.0]], np.float32)
    before, after = (
        sight(torch.from_numpy(p)[None, :FRAME], (40, 40), 1)[0].unflatten(1, (40, 40))
        for p in (pose, moved(pose, matrix))
    )
    for x, y in ((10, 10), (20, 15), (25, 5)):
        u, v = matrix @ (x, y, 1)
        grid = torch.tensor([[[[u / 19.5 - 1, v / 19.5 - 1]]]]).float()
        there = torch.nn.functional.grid_sample(after[None], grid, align_corners=True)
        torch.testing.assert_close(there.flatten(), before[:, y, x], atol=0.02, rtol=0)
    assert np.allclose(shifted(pose, 5, 3)[:2], (17, 7))
    assert np.allclose(shifted(pose, 5, 3)[2:FRAME], pose[2:FRAME])


def test_a_mirrored_thing_is_seen_from_the_other_side_and_a_hand_is_the_other_hand():
    pose = _pose()
    flipped = mirrored(pose, 32)
    assert flipped.shape == (1, POSE)
    for begin, side in ((0, (1, -1, 1)), (FRAME, (1, 1, 1))):
        here, there = (p[:, begin : begin + FRAME] for p in (pose, flipped))
        before = sight(here, (24, 32), 1).unflatten(2, (24, 32))
        after = sight(there, (24, 32), 1).unflatten(2, (24, 32))
        signs = torch.tensor(side)[None, :, None, None]
        torch.testing.assert_close(after.flip(-1), before * signs)
        torch.testing.assert_close(there[:, 8:], here[:, 8:] * torch.tensor(side))
    torch.testing.assert_close(mirrored(flipped, 32), pose)
