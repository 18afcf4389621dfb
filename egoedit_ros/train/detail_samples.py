# SPDX-License-Identifier: Apache-2.0
"""Stage ``detail_samples``: edits as streams make them, beside their targets, for stage ``detail``.

Each scene is filmed for five pictures, a stream's first two latent frames, in the states of
:mod:`egoedit_ros.data.sim.crossed` and with one other edit; the editor edits some of the pairs. (Or
for the first picture alone: four pictures of a latent frame are much alike, and one takes two
fifths of the time of five.) What is kept of each is a square around the edit: source, target, what
the decoder made, its mask, both latents, and where thing and hand are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.data.clip import cannot_write
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.sim.crossed import draw_crossed
from egoedit_ros.data.sim.edits import draw_task_edit
from egoedit_ros.data.sim.frames import pose_at
from egoedit_ros.data.sim.render import FPS
from egoedit_ros.data.sim.scene import Edit, Scene, draw_scene
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import CELL
from egoedit_ros.model.pose import shifted

SQUARE = 128  # pixels kept: room for a network's square to be anywhere in
FRAMES = 5
PICKED = {"replace": 5, "remove": 2, "recolour": 1}  # edits to a scene, and one of these:
OTHERS = ("add", "reasoning", "change_effect", "add", "reasoning", "combined")
NUMBER_OF_RANDOM = 77  # names the stream of what is picked


@dataclass(frozen=True)
class SampleScenes:
    """model: the editor whose edits these are; seeds: rows of (first, count); singles: the same, of
    scenes that are filmed for one picture."""

    model: str = "edge"
    seeds: tuple = ((300_000, 1000),)
    singles: tuple = ()
    workers: int | None = None

    def all(self) -> dict[int, int]:
        """How many pictures each seed's scene is filmed for. Raises UserError for no seed, and for
        those that are kept for evaluation."""
        frames = {}
        for rows, count in ((self.seeds, FRAMES), (self.singles, 1)):
            try:
                frames |= {first + i: count for first, number in rows for i in range(number)}
            except (TypeError, ValueError):
                raise self._unfit(rows) from None
        if not frames or min(frames) < 0 or max(frames) >= EVALUATION_SEED:
            raise self._unfit((*self.seeds, *self.singles))
        return frames

    @staticmethod
    def _unfit(rows: object) -> UserError:
        return UserError(
            f"detail_samples: seeds and singles are {rows!r}; give rows of [first, count] below "
            f"{EVALUATION_SEED}, from where on they are for evaluation"
        )


def draw_jobs(scene: Scene) -> tuple[list[Edit], list[tuple[int, int, str, str, int]]]:
    """Edits to film, and of which film (0: the source) which is to be made: (from, to, task,
    instruction, seed)."""
    rng = np.random.default_rng([scene.seed, NUMBER_OF_RANDOM])
    edits, pairs, told = draw_crossed(scene)
    other = draw_task_edit(scene, str(rng.choice(OTHERS)))
    if other.look or other.background:  # of the whole picture
        other = draw_task_edit(scene, "add")
    jobs = [(a, b, *t) for (a, b), t in zip(pairs, told, strict=True)]
    picked = []
    for task, count in PICKED.items():
        ready = [job for job in jobs if job[2] == task]
        picked += [ready[i] for i in rng.permutation(len(ready))[:count]]
    edits = [*edits, other]
    picked.append((0, len(edits), other.task, other.instruction))
    return edits, [(*job, int(rng.integers(1000))) for job in picked]


def _write(simulator, session, folder: Path, seed: int, frames: int) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    scene = draw_scene(seed, FRAMES / FPS)
    edits, jobs = draw_jobs(scene)
    clip = simulator.render_clip(scene, edits, frames)
    films = [clip.source, *clip.targets]
    kept: dict[str, list] = {}
    told = []
    for number, (a, b, task, text, noise) in enumerate(jobs):
        index, after = edits[b - 1].changes[0]
        poses = _poses(scene.edited(edits[b - 1]), index, films[a])
        told.append((task, text, after.kind if after.visible else ""))
        _edited(session, films[a], films[b], poses, text, noise, number, kept)
    arrays = {name: np.ascontiguousarray(np.stack(values)) for name, values in kept.items()}
    path = folder / f"{seed}.safetensors"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(arrays, part, {"texts": json.dumps(told)})
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise cannot_write(path, error) from None
    finally:
        part.unlink(missing_ok=True)


def _poses(scene: Scene, index: int, film: np.ndarray) -> np.ndarray:
    """Where a thing and the hand are in each picture of a film: ``[t, POSE]``."""
    size = film.shape[2], film.shape[1]
    return np.stack([pose_at(scene, index, scene.start + i / FPS, size) for i in range(len(film))])


def _edited(session, source, target, poses, text: str, seed: int, number: int, kept: dict) -> None:
    """Edit one film and add its squares to ``kept``."""
    session.reset()
    session.set_instruction(text, seed)
    for inside in (slice(0, 1), slice(1, FRAMES))[: len(source)]:
        work = session.begin(np.ascontiguousarray(source[inside]))
        for stage in ("ingest", "encode", "denoise", "decode"):
            work = getattr(session, stage)(work)
        made, mask = work.picture.cpu().numpy(), work.mask.cpu().numpy()
        corner = _corner(source[inside], made, mask)
        if corner is None:
            continue
        box = tuple(slice(c, c + SQUARE) for c in corner)
        cells = tuple(slice(c // CELL, (c + SQUARE) // CELL) for c in corner)
        count = len(made)
        latents = {"edited": work.edited[0], "before": work.latents[0, 0]}
        for name, value in latents.items():
            kept.setdefault(name, []).append(value[:, *cells].half().cpu().numpy())
        frame = len(kept["edited"]) - 1
        kept.setdefault("place", []).extend(
            np.array([frame, i if count > 1 else -1, number]) for i in range(count)
        )
        kept.setdefault("pose", []).extend(shifted(poses[inside], *corner))
        pictures = {"source": source[inside], "target": target[inside], "made": made, "mask": mask}
        for name, value in pictures.items():
            kept.setdefault(name, []).extend(value[:, *box])


def _corner(source: np.ndarray, made: np.ndarray, mask: np.ndarray) -> list[int] | None:
    """Row and column of the kept square, around the middle of what is edited; None: nothing is."""
    change = (np.abs(made.astype(np.int16) - source).sum(-1) * (mask > 0)).sum(0)
    total = int(change.sum())
    if not total:
        return None
    corner = []
    for axis in (1, 0):
        line = change.sum(axis)
        middle = float((line * np.arange(len(line))).sum()) / total
        begin = round((middle - SQUARE / 2) / CELL) * CELL
        corner.append(min(max(begin, 0), (len(line) - SQUARE) // CELL * CELL))
    return corner


def _work(setting: tuple, scenes: list[tuple[int, int]], put) -> None:
    import torch

    from egoedit_ros.data.sim.render import Simulator
    from egoedit_ros.stream.edit_session import EditSession, load_model

    folder, name = setting
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model = load_model(name)
    session, simulator = EditSession(model), Simulator(*model.config.size)
    for seed, frames in scenes:
        _write(simulator, session, folder, seed, frames)
        put(seed)


def make_samples(folder: Path, scenes: SampleScenes) -> Iterator[tuple[int, int]]:
    """Write the missing scenes' samples, one file a scene; yields (done, of)."""
    frames = scenes.all()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [s for s in frames.items() if not (folder / f"{s[0]}.safetensors").exists()]
    done = len(frames) - len(missing)
    yield done, len(frames)
    if missing:
        for _ in run_crew(_work, (folder, scenes.model), missing, scenes.workers, "samples"):
            done += 1
            yield done, len(frames)
