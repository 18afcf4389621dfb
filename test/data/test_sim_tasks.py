# SPDX-License-Identifier: Apache-2.0
"""The further tasks: drawn from the seed, determined, said in words that fit what is shown."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from replay_support import ROOT

from egoedit_ros.bench.simulator_metrics import edited_pixels
from egoedit_ros.cli.main import main
from egoedit_ros.data.algorithmic import recipe_table
from egoedit_ros.data.clip import read_clip
from egoedit_ros.data.sim import wording
from egoedit_ros.data.sim.edits import (
    BACKGROUNDS,
    draw_task_edit,
    draw_task_edits,
    evaluation_edit,
    touched_pairs,
)
from egoedit_ros.data.sim.generate import generate
from egoedit_ros.data.sim.looks import apply_look, depth_map
from egoedit_ros.data.sim.scene import draw_edits, draw_scene, thing_at
from egoedit_ros.data.sim.tasks import ALL_TASKS, FROM_MAP, parse_tasks, task_table
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED, HELD_OUT_PAIRS, SYNONYMS, TASKS
from egoedit_ros.errors import UserError


def _drawn(things):
    return [(t.kind, t.color, t.rgb, t.x, t.y, t.yaw, t.gloss, t.visible) for t in things]


def test_the_first_three_tasks_stay_what_they_were():
    """Weights, published figures and the benchmark's clips depend on these draws."""
    digest = hashlib.sha256()
    for seed in (*range(40), *range(EVALUATION_SEED, EVALUATION_SEED + 20)):
        scene = draw_scene(seed, 13 / 16)
        digest.update(repr(_drawn(scene.things)).encode())
        for edit in draw_edits(scene, 3):
            shown = _drawn([edit.after])
            digest.update(repr((edit.task, edit.instruction, edit.index, shown)).encode())
        assert draw_task_edits(scene, 3) == draw_edits(scene, 3)
    assert digest.hexdigest() == "40f994d21d4296d6e188ed6794f16ac8d18eed7a18f489a5511e785e4d77ae0d"


def test_every_task_comes_equally_often_and_maps_come_alone():
    counts = Counter()
    for seed in range(12 * 6):
        edits = draw_task_edits(draw_scene(seed), 3, ALL_TASKS)
        counts.update(e.task for e in edits)
        assert len({e.task for e in edits}) == len(edits) <= 3
        if edits[0].task in FROM_MAP:
            assert len(edits) == 1
    assert set(counts) == set(ALL_TASKS) and set(counts.values()) == {12}


@pytest.mark.parametrize("task", ALL_TASKS)
def test_wording_varies_fits_and_keeps_the_unseen_apart(task):
    texts, unseen = [], []
    for seed in range(120):
        scene = draw_scene(seed)
        edit = draw_task_edit(scene, task)
        assert edit == draw_task_edit(draw_scene(seed), task) and edit.task == task
        assert not touched_pairs(scene, edit) & HELD_OUT_PAIRS
        texts.append(edit.instruction)
        unseen.append(draw_task_edit(scene, task, held_out_wording=True).instruction)
    for text in (*texts, *unseen):
        assert not re.search(r"[{}]|  |\b[Aa] orange|\.\.|None", text), text
    assert len(set(texts)) >= (8 if "to_" in task else 20)
    plain = {re.sub(r"\W+$", "", t.lower()) for t in texts}
    assert not plain & {re.sub(r"\W+$", "", t.lower()) for t in unseen}


def test_an_added_thing_is_new_in_sight_and_apart():
    for seed in range(200):
        scene = draw_scene(seed)
        edit = draw_task_edit(scene, "add")
        ((index, new),) = edit.changes
        assert index == len(scene.things) and new.kind not in {t.kind for t in scene.things}
        assert len(scene.edited(edit).things) == len(scene.things) + 1
        near = min(
            np.hypot(new.x - x, new.y - y)
            for i in range(len(scene.things))
            for x, y, _ in [thing_at(scene, i, scene.start)[0]]
        )
        assert near >= 0.099 or "table" in edit.instruction or "surface" in edit.instruction
        sides = {"left": -1, "right": 1}
        for word, sign in sides.items():
            if f"{word} of the" in edit.instruction:
                assert any(abs(sign * (new.x - t.x) - 0.11) < 1e-6 for t in scene.things)


def test_reasoning_means_one_thing_and_does_not_name_it():
    for seed in range(200):
        scene = draw_scene(seed)
        edit = draw_task_edit(scene, "reasoning")
        kind = scene.things[edit.index].kind
        text = edit.instruction.lower()
        uses = [u for u in wording.USES if u[0] in text]
        assert len(uses) >= 1 and any(kind in u[2] for u in uses)
        meant = [t.kind for t in scene.things if any(t.kind in u[2] for u in uses[:1])]
        assert meant == [kind] or len(uses) > 1
        called = text.split(" with ")[0] if edit.after.visible else text
        assert not any(f" {n} " in f"{called} " for n in SYNONYMS[kind] if n not in uses[0][0])


def test_evaluation_takes_turns_and_every_fourth_round_is_unseen():
    picks = [evaluation_edit(i, 1.0, ("add", "effect")) for i in range(8)]
    assert [e.task for _, e, _ in picks[:4]] == ["add", "effect", "add", "effect"]
    assert [unseen for *_, unseen in picks] == [False] * 6 + [True] * 2
    assert all(scene.seed >= EVALUATION_SEED for scene, *_ in picks)


def test_names_of_tasks_are_read(tmp_path, capsys):
    assert parse_tasks("all") == ALL_TASKS and parse_tasks("add, remove,add") == ("add", "remove")
    assert main(["data", "sim", "-o", str(tmp_path / "out"), "--tasks", "waltz"]) == 2
    assert "no task 'waltz'" in capsys.readouterr().err and not (tmp_path / "out").exists()
    for text in ("waltz", "", "add,waltz"):
        with pytest.raises(UserError, match="'all' or some of: recolour"):
            parse_tasks(text)


def test_the_documentation_has_the_tables_of_the_code():
    page = (ROOT / "docs" / "data.md").read_text()
    assert task_table() in page and recipe_table() in page
    assert all(f"| `{name}` |" in page for name in ALL_TASKS)


def test_looks_are_what_they_say():
    frames = np.full((5, 48, 64, 3), 60, np.uint8)
    near_far = np.linspace(0.25, 2.5, 64, dtype=np.float32)
    depth = np.broadcast_to(near_far, (5, 48, 64))
    shown = depth_map(depth)[0, 0, :, 0].astype(int)
    assert (np.diff(shown) <= 0).all() and shown[0] > 180 and shown[-1] < 60
    fog = apply_look("fog", frames, depth)[0, 0, :, 0].astype(int)
    assert (np.diff(fog) >= 0).all() and fog[-1] > fog[0] + 40
    water = apply_look("underwater", frames, depth).mean((0, 1, 2))
    assert water[0] < water[1] < water[2]
    for name in ("rain", "snow"):
        made = apply_look(name, frames, depth)
        assert np.array_equal(made[:2], apply_look(name, frames[:2], depth[:2]))
        assert not np.array_equal(made[0], made[1]) and made.max() > 120
    assert apply_look("", frames, None) is frames


@pytest.mark.egl
def test_each_task_shows_its_target(tmp_path):
    """One small clip of each task, rendered by processes as ``--tasks all`` does."""
    list(generate(tmp_path, 6, 6, size=(128, 96), frames=2, workers=1, tasks=ALL_TASKS))
    seen = {}
    for path in sorted(tmp_path.glob("*.safetensors")):
        clip = read_clip(path)
        for task, target in zip(clip.tasks, clip.targets, strict=True):
            seen[task] = (clip, target, edited_pixels(clip.source, target).mean())
    assert set(seen) == set(ALL_TASKS)
    for task, (_, _, share) in seen.items():
        local = task in (*TASKS, "add", "change_effect", "reasoning")
        assert 0.002 < share < 0.35 if local else share > 0.02, (task, share)
    sketch = seen["video_to_sketch"][1]
    assert set(np.unique(sketch)) <= {0, 255} and 0 < (sketch > 0).mean() < 0.3
    depth = seen["video_to_depth"][1].astype(int)
    assert (depth[..., 0] == depth[..., 2]).all() and len(np.unique(depth)) > 30
    assert set(np.unique(seen["sketch_to_video"][0].source)) <= {0, 255}
    source = seen["depth_to_video"][0].source.astype(int)
    assert (source[..., 0] == source[..., 1]).all()
    # A folder belongs to one choice of tasks.
    with pytest.raises(UserError, match="clips with other tasks"):
        list(generate(tmp_path, 6, 6, size=(128, 96), frames=2, workers=1))
    assert len(BACKGROUNDS) >= 5
