# SPDX-License-Identifier: Apache-2.0
"""Clips from footage on all cores: algorithmic edits of anything, and the pairs of bags.

One input is one job. What was made stays when a process dies or is stopped; the same command goes
on from there, and more inputs can be named later.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np

from egoedit_ros.data.algorithmic import TASKS, draw_recipes
from egoedit_ros.data.clip import StoredClip
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.folder import ClipFolder, write_windows
from egoedit_ros.data.footage import Cut, read_windows
from egoedit_ros.data.pairs import BagPairs, BagTopics
from egoedit_ros.errors import UserError


def edit_windows(
    path: Path,
    topic: str | None,
    cut: Cut,
    edits: int,
    seed: int,
    tasks: tuple[str, ...] = TASKS,
    held_out: bool = False,
) -> list[StoredClip]:
    """The windows of a video or bag, each with ``edits`` algorithmic edits.

    Which, and in what words, follows from seed, file name and window.
    """
    clips = []
    for number, source in enumerate(read_windows(path, topic, cut)):
        rng = np.random.default_rng([seed, crc32(path.name.encode()), number])
        drawn = draw_recipes(rng, edits, tasks, held_out)
        names, texts = [r.task for r, _ in drawn], [text for _, text in drawn]
        targets = [recipe.run(source) for recipe, _ in drawn]
        clips.append(StoredClip(0, names, texts, source, targets, None, f"{path.name} @{number}"))
    return clips


def _edit(setting: tuple, jobs: list[tuple[Path, int]], put) -> None:
    folder, topic, cut, edits, seed, tasks = setting
    for path, first in jobs:
        try:
            clips = edit_windows(path, topic, cut, edits, seed, tasks)
        except UserError as error:
            put((0, str(error)))
            continue
        put((write_windows(folder, first, clips), "" if clips else f"{path} is too short"))


def _pair(setting: tuple, jobs: list[tuple[Path, int]], put) -> None:
    folder, topics, cut = setting
    for path, first in jobs:
        try:
            with BagPairs(path, topics) as pairs:
                clips = list(pairs.clips(cut))
        except UserError as error:
            put((0, str(error)))
            continue
        put((write_windows(folder, first, clips), ""))


def make_edits(
    inputs: list[Path],
    output: Path,
    cut: Cut,
    topic: str | None = None,
    edits: int = 3,
    seed: int = 0,
    tasks: tuple[str, ...] = TASKS,
    workers: int | None = None,
) -> Iterator[tuple[int, int, str]]:
    """Algorithmic edits of bags and videos; yields (inputs done, of, what is wrong or '')."""
    wrong = [name for name in tasks if name not in TASKS]
    if wrong:
        raise UserError(f"no algorithmic task {wrong[0]!r}; there are: {', '.join(TASKS)}")
    options = {"kind": "algorithmic", "edits": edits, "seed": seed, "tasks": tasks, "topic": topic}
    setting = (output, topic, cut, edits, seed, tasks)
    yield from _make(_edit, setting, inputs, output, options | cut.options(), workers)


def make_pairs(
    inputs: list[Path],
    output: Path,
    cut: Cut,
    topics: BagTopics | None = None,
    workers: int | None = None,
) -> Iterator[tuple[int, int, str]]:
    """The pairs in bags; yields (bags done, of, what is wrong or '')."""
    topics = topics or BagTopics()
    options = {"kind": "pairs", "topics": [topics.source, topics.edited, topics.instruction]}
    options |= {"text": topics.text} | cut.options()
    yield from _make(_pair, (output, topics, cut), inputs, output, options, workers)


def _make(
    work, setting: tuple, inputs: list[Path], output: Path, options: dict, workers: int | None
) -> Iterator[tuple[int, int, str]]:
    folder = ClipFolder(output, options)
    keys = [str(path.resolve()) for path in inputs]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise UserError(f"{sorted(twice)[0]} is named twice")
    folder.add(keys)
    jobs = [
        (path, folder.number(key))
        for path, key in zip(inputs, keys, strict=True)
        if not folder.done(key)
    ]
    done = len(inputs) - len(jobs)
    clips = 0
    yield done, len(inputs), ""
    if not jobs:
        return
    problems = []
    for made, problem in run_crew(work, setting, jobs, workers, "data"):
        done, clips = done + 1, clips + made
        problems += [problem] if problem else []
        yield done, len(inputs), problem
    if not clips and len(jobs) == len(inputs):
        raise UserError(problems[0])
