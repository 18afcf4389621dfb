# SPDX-License-Identifier: Apache-2.0
"""The suite as a user runs it: real rendering, a real stream, the contract's keys."""

import json

import numpy as np
import pytest

from egoedit_ros.bench.metrics.registry import LOCAL_METRICS
from egoedit_ros.bench.simulator_suite import (
    run_suite,
    stream_clip,
    suite_edit,
    summarise,
    summarise_unaided,
)
from egoedit_ros.cli.main import main
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.stream.session import NullSession

KEYS = {"edit_gain", "ssim_gain", "keep_psnr", "hand_psnr"}


def test_clips_are_evaluation_seeds_and_tasks_take_turns():
    picks = [suite_edit(i) for i in range(8)]
    assert all(scene.seed >= EVALUATION_SEED for scene, _, _ in picks)
    assert [e.task for _, e, _ in picks[:4]] == ["recolour", "replace", "remove", "recolour"]
    assert [unseen for _, _, unseen in picks] == [False, False, False, True] * 2


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("count", [1, 6, 9, 17])
def test_a_clip_of_any_length_comes_back_whole(chunk, count):
    frames = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(stream_clip(NullSession((32, 32), chunk), frames, "x", 0), frames)


@pytest.mark.egl
def test_a_model_that_does_nothing_scores_nothing():
    clips = list(run_suite(NullSession(), 3))
    content = summarise([c.row for c in clips])
    assert content["mean"]["edit_gain"] == pytest.approx(0, abs=1e-6)
    assert content["mean"]["ssim_gain"] == pytest.approx(0, abs=1e-6)
    assert content["mean"]["keep_psnr"] > 40
    assert set(content["tasks"]) == {"recolour", "replace", "remove"}
    unaided = summarise_unaided(clips)
    for figures in (unaided["mean"], *unaided["tasks"].values()):
        assert set(figures) == set(LOCAL_METRICS)
        assert figures["edit_strength"] == 0 and figures["background_psnr"] == 60
        assert figures["temporal_error"] == 1 and figures["flicker"] == 0
        assert figures["chunk_jump"] == pytest.approx(1)
    assert list(unaided["tasks"]) == ["recolour", "replace", "remove"]
    if unaided["mean"]["hands_kept"] is None:
        assert unaided["unavailable"]["hands_kept"]


@pytest.mark.egl
def test_any_task_can_be_evaluated_and_a_whole_picture_has_nothing_to_keep():
    tasks = ("add", "stylize", "sketch_to_video")
    clips = list(run_suite(NullSession(), 3, tasks=tasks))
    assert [c.row["task"] for c in clips] == list(tasks)
    rows = summarise([c.row for c in clips])["tasks"]
    assert list(rows) == list(tasks)
    assert all(rows[t]["edit_gain"] == pytest.approx(0, abs=1e-6) for t in tasks)
    assert rows["add"]["keep_psnr"] > 40
    unaided = summarise_unaided(clips)["tasks"]
    assert unaided["add"]["background_psnr"] == 60
    assert unaided["stylize"]["background_psnr"] is None


def test_a_task_that_there_is_not_is_named(capsys):
    assert main(["bench", "edit", "--suite", "sim", "--tasks", "levitate"]) == 2
    assert "levitate" in capsys.readouterr().err


@pytest.mark.egl
@pytest.mark.slow
def test_the_bundled_model_edits(tmp_path):
    file, sheet = tmp_path / "sim.json", tmp_path / "sheet.png"
    words = ["bench", "edit", "--suite", "sim", "--clips", "6", "--json", str(file)]
    assert main([*words, "--sheet", str(sheet)]) == 0
    content = json.loads(file.read_text())
    assert set(content["mean"]) == KEYS and len(content["clips"]) == 6
    assert content["unaided"]["mean"]["edit_strength"] > 0
    assert content["streaming"] is True and content["nfe"] >= 1
    for key in ("host", "versions", "git_revision", "command", "config", "input_sha256"):
        assert key in content
    # Far below what it scores, far above what a model that does nothing or smears would.
    assert content["mean"]["edit_gain"] > 0.5 and content["mean"]["keep_psnr"] > 28
    assert sheet.stat().st_size > 50_000
    assert main(words) == 2  # an output that exists is refused


def test_a_suite_needs_a_model(capsys):
    assert main(["bench", "edit", "--model", "no/such", "--clips", "1"]) == 2
    assert "no model at" in capsys.readouterr().err
