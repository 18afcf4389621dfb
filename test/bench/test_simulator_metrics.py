# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from egoedit_ros.bench.simulator_metrics import mean_of, score_clip


@pytest.fixture
def clip():
    rng = np.random.default_rng(0)
    source = rng.integers(60, 190, (3, 48, 64, 3), dtype=np.uint8)
    target = source.copy()
    target[:, 10:30, 20:40] = (200, 30, 30)
    hand = np.zeros((3, 48, 64), bool)
    hand[:, 30:] = True
    return source, target, hand


def test_doing_nothing_scores_zero_and_keeps_all(clip):
    source, target, hand = clip
    scores = score_clip(source, target, source, hand)
    assert scores["edit_gain"] == pytest.approx(0) and scores["ssim_gain"] == pytest.approx(0)
    assert scores["keep_psnr"] == 60 and scores["hand_psnr"] == 60


def test_the_target_itself_scores_one(clip):
    source, target, hand = clip
    scores = score_clip(source, target, target, hand)
    assert scores["edit_gain"] == pytest.approx(1) and scores["ssim_gain"] == pytest.approx(1)


def test_a_smear_of_the_right_colour_is_seen_through():
    rng = np.random.default_rng(1)
    source = np.full((2, 64, 64, 3), 90, np.uint8)
    target = source.copy()
    target[:, 16:48, 16:48] = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    smear = source.copy()
    smear[:, 16:48, 16:48] = target[:, 16:48, 16:48].mean((1, 2), keepdims=True)
    scores = score_clip(source, target, smear, np.zeros((2, 64, 64), bool))
    assert scores["ssim_gain"] < 0.5 * scores["edit_gain"]
    assert scores["hand_psnr"] is None


def test_noise_outside_the_edit_costs_keep_psnr_only(clip):
    source, target, hand = clip
    noisy = target.copy()
    noisy[:, 40:] = np.clip(noisy[:, 40:].astype(int) + 20, 0, 255)
    scores = score_clip(source, target, noisy, hand)
    assert scores["edit_gain"] == pytest.approx(1)
    assert scores["hand_psnr"] < scores["keep_psnr"] < 40


def test_frames_without_an_edit_are_left_out(clip):
    source, target, hand = clip
    target[1] = source[1]
    assert score_clip(source, target, target, hand)["ssim_gain"] == pytest.approx(1)
    nothing = score_clip(source, source, source, hand)
    assert nothing["edit_gain"] is None and nothing["ssim_gain"] is None


def test_means_leave_out_what_is_not_there():
    rows = [
        {"edit_gain": 0.5, "ssim_gain": None, "keep_psnr": 30.0, "hand_psnr": None},
        {"edit_gain": 1.0, "ssim_gain": None, "keep_psnr": 40.0, "hand_psnr": 20.0},
    ]
    assert mean_of(rows) == {
        "edit_gain": 0.75, "ssim_gain": None, "keep_psnr": 35.0, "hand_psnr": 20.0,
    }  # fmt: skip
