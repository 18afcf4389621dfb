# SPDX-License-Identifier: Apache-2.0
"""``bench edit --suite sim``: stream evaluation clips through a model, score against the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.bench.metrics.registry import LOCAL_METRICS
from egoedit_ros.bench.simulator_metrics import mean_of, score_clip, score_unaided
from egoedit_ros.data.sim.edits import evaluation_edit, touched_pairs
from egoedit_ros.data.sim.scene import Edit, Scene, draw_edits, draw_scene
from egoedit_ros.data.sim.tasks import ALL_TASKS
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED, HELD_OUT_PAIRS, TASKS
from egoedit_ros.stream.session import ChunkSession, frames_in_chunk

FRAMES = 17
HELD_OUT_WORDING_EVERY = 4


@dataclass(slots=True)
class SuiteClip:
    """One evaluation clip and what came of it; pictures uint8 ``[t, h, w, 3]``.

    row: of the contract's ``clips``. unaided, why: figures that need no target, and why there is
    none.
    """

    row: dict
    source: np.ndarray
    edited: np.ndarray
    target: np.ndarray
    unaided: dict[str, float | None]
    why: dict[str, str]


def suite_edit(number: int, tasks: tuple[str, ...] = TASKS) -> tuple[Scene, Edit, bool]:
    """Scene and edit of evaluation clip ``number``, and whether its wording is unseen in training:
    every fourth clip's, and with other tasks than the first three all of every fourth round's."""
    if tasks != TASKS:
        return evaluation_edit(number, FRAMES / 16, tasks, HELD_OUT_WORDING_EVERY)
    unseen = number % HELD_OUT_WORDING_EVERY == HELD_OUT_WORDING_EVERY - 1
    scene = draw_scene(EVALUATION_SEED + number, FRAMES / 16)
    edits = draw_edits(scene, len(TASKS), held_out_wording=unseen)
    return scene, edits[number % len(TASKS)], unseen


def stream_clip(session: ChunkSession, frames: np.ndarray, text: str, seed: int) -> np.ndarray:
    """A whole clip through a session from its start, as a stream; the tail is padded, trimmed."""
    session.reset()
    session.set_instruction(text, seed)
    out, begin = [], 0
    while begin < len(frames):
        need = session.frames_needed
        chunk = frames[begin : begin + need]
        have = len(chunk)
        if have < need:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], need - have, axis=0)])
        out.append(session.run(np.ascontiguousarray(chunk)).frames[:have])
        begin += have
    return np.concatenate(out)


def run_suite(
    session: ChunkSession, clips: int, seed: int = 0, tasks: tuple[str, ...] = TASKS
) -> Iterator[SuiteClip]:
    """Render, edit and score ``clips`` evaluation clips, one after another; tasks take turns."""
    from egoedit_ros.data.sim.render import Simulator

    chunks = tuple(frames_in_chunk(session.chunk_latents, first) for first in (True, False))
    simulator = Simulator(*session.size)
    try:
        for number in range(clips):
            scene, edit, unseen = suite_edit(number, tasks)
            clip = simulator.render_clip(scene, [edit], FRAMES)
            edited = stream_clip(session, clip.source, edit.instruction, seed)
            row = {
                "seed": scene.seed,
                "task": edit.task,
                "instruction": edit.instruction,
                "held_out_wording": unseen,
                "held_out_pair": bool(touched_pairs(scene, edit) & HELD_OUT_PAIRS),
            }
            row |= score_clip(clip.source, clip.targets[0], edited, clip.hand)
            unaided, why = score_unaided(clip.source, edited, edit.task, chunks)
            yield SuiteClip(row, clip.source, edited, clip.targets[0], unaided, why)
    finally:
        simulator.close()


def summarise(rows: list[dict]) -> dict:
    """``mean`` (over tasks), ``tasks`` and ``clips`` of the contract."""
    tasks = {t: mean_of([r for r in rows if r["task"] == t]) for t in ALL_TASKS}
    tasks = {t: m for t, m in tasks.items() if any(r["task"] == t for r in rows)}
    return {"mean": mean_of(list(tasks.values())), "tasks": tasks, "clips": rows}


def summarise_unaided(clips: list[SuiteClip]) -> dict:
    """The figures that need no target: ``mean`` over tasks, ``tasks``, ``clips``, and
    ``unavailable``: why a figure is nowhere."""
    rows = [{"task": c.row["task"], "seed": c.row["seed"], **c.unaided} for c in clips]
    tasks = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        tasks[task] = mean_of([row for row in rows if row["task"] == task], LOCAL_METRICS)
    mean = mean_of(list(tasks.values()), LOCAL_METRICS)
    reasons = {name: c.why[name] for c in clips for name in c.why if mean[name] is None}
    return {"mean": mean, "tasks": tasks, "clips": rows, "unavailable": reasons}


def contact_sheet(clips: list[SuiteClip], path: Path) -> None:
    """A picture: for each clip its source, edited and target frame, with the instruction."""
    import cv2

    tiles = []
    for clip in clips:
        index = len(clip.source) - 3
        row = np.hstack([clip.source[index], clip.edited[index], clip.target[index]])
        bar = np.full((22, row.shape[1], 3), 24, np.uint8)
        text = clip.row["instruction"][:100]
        cv2.putText(
            bar, text, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA
        )
        tiles.append(np.vstack([bar, row]))
    half = (len(tiles) + 1) // 2
    blank = np.full_like(tiles[0], 24)
    columns = [tiles[:half], tiles[half:] + [blank] * (2 * half - len(tiles))]
    gap = np.full((half * tiles[0].shape[0], 8, 3), 255, np.uint8)
    sheet = np.hstack([np.vstack(columns[0]), gap, np.vstack(columns[1])])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        from egoedit_ros.errors import UserError

        raise UserError(f"cannot write {path}; choose a folder that is writable")
