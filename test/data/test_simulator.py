# SPDX-License-Identifier: Apache-2.0
"""The simulator: deterministic, honest pairs, and nothing of the evaluation in training."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from egoedit_ros.bench.simulator_metrics import edited_pixels
from egoedit_ros.data.sim.generate import generate, read_clip
from egoedit_ros.data.sim.render import Simulator
from egoedit_ros.data.sim.scene import draw_edits, draw_scene, seen_turn, thing_at
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED, HELD_OUT_PAIRS, KINDS, TASKS
from egoedit_ros.errors import UserError


def _pairs(seed):
    scene = draw_scene(seed)
    pairs = {(t.kind, t.color) for t in scene.things}
    texts = []
    for edit in draw_edits(scene, 3):
        texts.append(edit.instruction)
        if edit.task != "remove":
            pairs.add((edit.after.kind, edit.after.color))
    return pairs, texts


def test_held_out_pairs_appear_in_evaluation_only():
    for seed in range(600):
        assert not _pairs(seed)[0] & HELD_OUT_PAIRS
    seen = set().union(*(_pairs(EVALUATION_SEED + i)[0] for i in range(600)))
    assert seen >= HELD_OUT_PAIRS


def test_wording_varies():
    texts = [t for seed in range(300) for t in _pairs(seed)[1]]
    assert len(set(texts)) > 0.8 * len(texts)
    assert not any("{" in t for t in texts)


def test_held_out_wording_is_never_drawn_for_training():
    held_out = {"pretend", "wipe", "imagine", "convert", "suit"}
    texts = [t for seed in range(600) for t in _pairs(seed)[1]]
    assert not any(word in text.lower().split() for word in held_out for text in texts)


def test_each_task_once_and_each_seed_its_own():
    assert sorted(e.task for e in draw_edits(draw_scene(5), 3)) == sorted(TASKS)
    assert draw_scene(5) == draw_scene(5)
    assert draw_scene(5).things != draw_scene(6).things


def test_a_replaced_thing_stands_on_the_same_base():
    from egoedit_ros.data.sim.assets import HALF_HEIGHT

    scene = draw_scene(12)
    edit = next(e for e in draw_edits(scene, 3) if e.task == "replace")
    old, turn = thing_at(scene, edit.index, scene.start)
    new, turned = thing_at(scene.edited(edit), edit.index, scene.start)
    half = [HALF_HEIGHT[k] for k in (scene.things[edit.index].kind, edit.after.kind)]
    assert np.allclose(old - turn @ [0, 0, half[0]], new - turned @ [0, 0, half[1]])


@pytest.mark.egl
def test_a_thing_looks_as_it_does_at_its_least_turn():
    simulator = Simulator()
    scene = next(s for s in map(draw_scene, range(1000)) if s.held == -1)
    for kind in KINDS:
        pictures = []
        for yaw in (0.9, seen_turn(kind, 0.9)):
            thing = replace(scene.things[0], kind=kind, yaw=yaw)
            pictures.append(simulator.render_frame(replace(scene, things=(thing,)), scene.start))
        assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 0.1
    assert seen_turn("mug", 0.9) == 0.9 and abs(seen_turn("cube", 0.9)) < np.pi / 4
    simulator.close()


@pytest.mark.egl
def test_pairs_differ_at_the_edit_and_nowhere_else(tmp_path):
    list(generate(tmp_path, 40, 4, frames=5, workers=1))
    clips = [read_clip(p) for p in sorted(tmp_path.glob("*.safetensors"))]
    assert [c.seed for c in clips] == [40, 41, 42, 43]
    shares = []
    for clip in clips:
        assert clip.source.shape == (5, 192, 256, 3) and clip.hand.shape == (5, 192, 256)
        for target in clip.targets:
            changed = edited_pixels(clip.source, target)
            shares.append(changed.mean())
            untouched = np.abs(clip.source.astype(int) - target).max(-1)[~changed]
            assert untouched.max() <= 12
    assert 0.001 < np.mean(shares) < 0.3
    assert any(c.hand.any() for c in clips)


@pytest.mark.egl
def test_same_seed_same_pixels_in_another_process(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from egoedit_ros.data.sim.generate import generate\n"
        "if __name__ == '__main__': list(generate(Path(sys.argv[1]), 77, 1, frames=2, workers=1))"
    )
    script = tmp_path / "make.py"
    script.write_text(code)
    for name in "ab":
        subprocess.run(
            [sys.executable, script, tmp_path / name], check=True, timeout=120,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    one, other = (read_clip(tmp_path / n / "00000077.safetensors") for n in "ab")
    assert np.array_equal(one.source, other.source)
    assert all(np.array_equal(a, b) for a, b in zip(one.targets, other.targets, strict=True))


@pytest.mark.egl
def test_generation_goes_on_where_it_stopped(tmp_path):
    list(generate(tmp_path, 0, 1, frames=2, workers=1))
    first = (tmp_path / "00000000.safetensors").stat().st_mtime_ns
    assert list(generate(tmp_path, 0, 2, frames=2, workers=1)) == [1, 2]
    assert (tmp_path / "00000000.safetensors").stat().st_mtime_ns == first


def test_a_clip_cut_short_is_named(tmp_path):
    path = tmp_path / "00000003.safetensors"
    path.write_bytes(b"\x10\x00\x00")
    with pytest.raises(UserError, match="00000003"):
        read_clip(path)
