# SPDX-License-Identifier: Apache-2.0
"""The figures that need no download say what they should of clips spoilt on purpose."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from bench.suite_support import moving

from egoedit_ros.bench.grid import GRID, Clip, pair_up, to_grid
from egoedit_ros.bench.metrics import hands, motion
from egoedit_ros.bench.metrics.registry import LOCAL_METRICS, METRICS, TASKS, task_name
from egoedit_ros.bench.metrics.score import score_pair
from egoedit_ros.errors import UserError

COUNT = 22


def on_grid(frames: np.ndarray, fps: float = 16, size=(160, 120)) -> Clip:
    return Clip(np.stack([to_grid(f) for f in frames]), fps, size)


@pytest.fixture(scope="module")
def source():
    return on_grid(moving(COUNT, seed=3))


def scored(source: Clip, frames: np.ndarray, chunks=(5, 6)) -> dict:
    """Figures of a local edit; there are no hands in these pictures to be looked for."""
    pair = pair_up(source, Clip(frames, source.fps, source.size))
    with patch.object(hands, "missing", return_value="not looked for"):
        return score_pair(pair, "Change Object", chunks)[0]


def test_an_unchanged_video_gets_what_the_documentation_says(source):
    unchanged = scored(source, source.frames)
    for metric in METRICS:
        if metric.still is not None and metric.name != "hands_kept":
            assert unchanged[metric.name] == pytest.approx(metric.still, abs=1e-6), metric.name


def test_noise_in_each_frame_is_caught(source):
    noise = np.random.default_rng(0).normal(0, 10, source.frames.shape)
    found = scored(source, np.clip(source.frames + noise, 0, 255).astype(np.uint8))
    assert found["temporal_error"] > 1.5
    assert found["background_psnr"] < 32
    assert found["background_ssim"] < 0.9


def test_shuffled_frames_are_caught(source):
    order = np.random.default_rng(0).permutation(len(source.frames))
    assert scored(source, source.frames[order])["temporal_error"] > 3


def test_pumping_brightness_is_flicker_in_grey_levels(source):
    still = Clip(np.repeat(source.frames[:1] // 2 + 60, 8, 0), 16, source.size)
    swing = 6 * (-1) ** np.arange(8)[:, None, None, None]
    assert scored(still, (still.frames + swing).astype(np.uint8))["flicker"] == pytest.approx(12)


def test_jumps_at_chunk_borders_are_found_where_they_are(source):
    chunk = np.maximum(0, np.arange(COUNT) - 5 + 6) // 6
    brighter = (20 * (chunk % 2)).astype(np.uint8)[:, None, None, None]
    frames = (source.frames * 0.8).astype(np.uint8) + brighter
    assert scored(source, frames, (5, 6))["chunk_jump"] > 3
    assert scored(source, frames, (3, 6))["chunk_jump"] < 1.5
    assert scored(source, frames, (20, 12))["chunk_jump"] is None


def test_a_local_edit_leaves_the_background(source):
    frames = source.frames.copy()
    frames[:, 150:250, 200:300] = (200, 30, 30)
    found = scored(source, frames)
    share = 100 * 100 * 100 / (GRID[0] * GRID[1])
    assert found["background_psnr"] == 60
    assert found["changed_area"] == pytest.approx(share, rel=0.35)
    assert found["edit_strength"] > 1


def test_figures_that_make_no_sense_for_a_task_are_left_out(source):
    values, why = score_pair(pair_up(source, source), "Change Camera Pose")
    assert values["background_psnr"] is None and "task" in why["background_psnr"]
    assert values["temporal_error"] is None and values["hands_kept"] is None
    assert set(values) == set(LOCAL_METRICS)
    assert set(why) == {n for n, v in values.items() if v is None}


def test_a_cut_in_the_source_does_not_count_as_unsteady(source):
    cut = source.frames.copy()
    cut[11:] = on_grid(moving(COUNT, seed=9)).frames[11:]
    found = scored(Clip(cut, 16, source.size), cut)
    assert found["temporal_error"] == pytest.approx(1)


# Hands: landmarks made by hand, as no picture of a hand may lie in the repository.

HAND = np.stack([np.linspace(0.3, 0.5, 21), np.linspace(0.4, 0.7, 21)], 1).astype(np.float32)


def test_hands_that_stay_move_or_vanish():
    source = [[HAND]] * 4
    assert hands.hands_kept(source, source, 4 / 3) == 100
    assert hands.hands_kept(source, [[HAND + 0.02]] * 4, 4 / 3) == 100
    assert hands.hands_kept(source, [[HAND + 0.2]] * 4, 4 / 3) == 0
    assert hands.hands_kept(source, [[HAND], [], [], [HAND]], 4 / 3) == 50
    assert hands.hands_kept(source[:2], source[:2], 4 / 3) is None


def test_two_hands_are_matched_by_place():
    other = HAND + np.float32([0.4, 0])
    assert hands.hands_kept([[HAND, other]] * 2, [[other, HAND]] * 2, 4 / 3) == 100
    assert hands.hands_kept([[HAND, other]] * 2, [[other]] * 2, 4 / 3) == 50


@pytest.mark.skipif(hands.missing() is not None, reason="no mediapipe")
def test_a_picture_without_hands_has_none(source):
    assert hands.find_hands(source.frames[0]) == []


def test_without_mediapipe_there_is_a_reason_and_no_figure(source, monkeypatch):
    def broken():
        raise ImportError("No module named 'mediapipe'")

    monkeypatch.setattr(hands, "_detector", broken)
    values, why = score_pair(pair_up(source, source), "Combined", None)
    assert "chunks" in why["chunk_jump"]
    assert values["hands_kept"] is None and "mediapipe" in why["hands_kept"]


# The common grid.


def test_same_frames_at_another_size_are_compared_on_the_grid(source):
    pair = pair_up(source, Clip(source.frames, 16, (80, 60)))
    assert "80x60 against 160x120" in pair.notes[0]
    assert len(pair.source) == COUNT


def test_fewer_frames_are_matched_by_time_and_it_is_said(source):
    half = Clip(source.frames[::2], 8, source.size)
    pair = pair_up(source, half)
    assert np.array_equal(pair.source_index, np.arange(0, COUNT, 2))
    assert "matched by time" in pair.notes[0] and "left out" in pair.notes[1]
    assert np.array_equal(pair.source, pair.edited)


def test_more_frames_at_a_higher_rate_are_thinned(source):
    double = Clip(np.repeat(source.frames, 2, 0), 32, source.size)
    pair = pair_up(source, double)
    assert np.array_equal(pair.source, pair.edited)
    assert len(pair.source) == COUNT


def test_a_wrong_rate_in_the_file_does_not_mislead(source):
    slow = Clip(source.frames[:14], 5, source.size)
    pair = pair_up(source, slow)
    assert "frame by frame" in pair.notes[0]
    assert np.array_equal(pair.source, pair.edited)


def test_frames_resampled_under_the_old_label_are_found(source):
    index = np.round(np.arange(17) * 1.25).astype(int)
    pair = pair_up(source, Clip(source.frames[index], 16, source.size))
    assert np.array_equal(pair.source_index, index)
    assert "1.25 source frames" in pair.notes[0]


def test_alignment_can_be_ordered(source):
    half = Clip(source.frames[:11], 8, source.size)
    assert np.array_equal(pair_up(source, half, "index").source_index, np.arange(11))
    assert pair_up(source, half, "time").source_index[-1] == 20


def test_too_little_in_common_is_refused(source):
    short = Clip(source.frames[:1], 16, source.size)
    with pytest.raises(UserError, match="only 1 frames"):
        pair_up(source, short)


def test_names_of_tasks():
    assert task_name("change") == "Change Object"
    assert task_name("video_to_depth") == "Video-to-Depth"
    assert task_name("Depth to Video") == "Depth-to-Video"
    assert task_name("something new") == "something new"
    assert all(task_name(t) == t for t in TASKS)


def test_chunk_borders():
    assert motion.chunk_borders(34, 9, 12) == [9, 21, 33]
    assert motion.chunk_borders(6, 1, 4) == [1, 5]
