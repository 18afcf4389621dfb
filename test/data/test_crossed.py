# SPDX-License-Identifier: Apache-2.0
"""Crossed edits: every instruction leads from what its first film shows to what its second does."""

import numpy as np
import pytest

from egoedit_ros.cli.main import main
from egoedit_ros.data.clip import StoredClip, read_clip, write_stored
from egoedit_ros.data.sim.crossed import draw_crossed, draw_states
from egoedit_ros.data.sim.scene import draw_scene
from egoedit_ros.data.sim.vocabulary import COLORS, HELD_OUT_PAIRS, SYNONYMS
from egoedit_ros.errors import UserError

ROUND = ("ball", "can", "bottle", "cone")


def _all_pairs():
    """All that seven films allow, the last one without the thing."""
    return {(a, b) for a in range(6) for b in range(1, 7) if a != b}


def _names(kind, text):
    return any(f"{name}" in text.lower() for name in SYNONYMS[kind])


@pytest.mark.parametrize("seed", range(12))
def test_instructions_say_what_their_films_show(seed):
    scene = draw_scene(seed)
    rng = np.random.default_rng([seed, 5])
    index, states = draw_states(rng, scene)
    films = [scene.things[index], *states]
    edits, pairs, told = draw_crossed(scene)
    assert [e.after for e in edits] == states and pairs[: len(edits)] == [
        (0, n + 1) for n in range(len(edits))
    ]
    assert len(set(pairs)) == len(pairs) == len(told) <= 31
    assert all(films[a].kind in (*ROUND, "cube") for a, b in _all_pairs() - set(pairs))
    for (a, b), (task, text) in zip(pairs, told, strict=True):
        before, after = films[a], films[b]
        assert a != b and before.visible
        assert _names(before.kind, text) or "pot" in text
        if task == "remove":
            assert not after.visible
        elif task == "recolour":
            assert after.kind == before.kind and after.color in text
        else:
            assert after.kind != before.kind and _names(after.kind, text)
            unsaid = not any(f" {c} " in f" {text.lower()} " for c in COLORS)
            assert not unsaid or after.color == before.color


def test_a_pair_shows_before_how_its_thing_is_turned_afterwards():
    turned = 0
    for seed in range(60):
        scene = draw_scene(seed)
        index, states = draw_states(np.random.default_rng([seed, 5]), scene)
        films = [scene.things[index], *states]
        for a, b in draw_crossed(scene)[1]:
            before, after = films[a], films[b]
            if before.kind in ROUND and after.visible and after.kind not in ROUND:
                assert after.yaw == 0
            if before.kind == "cube" and after.visible and after.kind not in (*ROUND, "cube"):
                assert abs(after.yaw) <= np.pi / 4 + 1e-9
                turned += after.yaw != 0
    assert turned


def test_no_state_is_a_pair_that_is_kept_for_evaluation():
    for seed in range(60):
        scene = draw_scene(seed)
        _, states = draw_states(np.random.default_rng([seed, 5]), scene)
        shown = {(t.kind, t.color) for t in states if t.visible}
        assert not shown & HELD_OUT_PAIRS
        kinds = [t.kind for t in scene.things]
        assert all(t.kind not in kinds for t in states[2:5])


def test_the_command_writes_films_and_pairs_that_read_back(tmp_path):
    command = ["data", "sim", "-o", str(tmp_path), "--seed", "5", "--clips", "1", "--frames", "2"]
    assert main([*command, "--crossed", "--workers", "1"]) == 0
    clip = read_clip(tmp_path / "00000005.safetensors")
    assert len(clip.targets) == 6 and 20 < len(clip.films) == len(clip.instructions) <= 31
    assert len({t.tobytes() for t in [clip.source, *clip.targets]}) == 7
    assert main([*command, "--crossed", "--workers", "1"]) == 0  # there already
    assert main([*command, "--workers", "1"]) != 0  # the folder holds other tasks
    assert main([*command, "--crossed", "--tasks", "add"]) != 0


def test_pairs_that_do_not_fit_their_tasks_are_refused(tmp_path):
    film = np.zeros((1, 8, 8, 3), np.uint8)
    clip = StoredClip(1, ["remove"], ["x"], film, [film], None, pairs=[(0, 1), (1, 1)])
    with pytest.raises(UserError, match="pairs and tasks disagree"):
        read_clip(write_stored(tmp_path, clip))
