# SPDX-License-Identifier: Apache-2.0
"""The one form of a training pair on disk, whatever it came from.

A clip is a safetensors file named by its number: ``source`` uint8 ``[t, h, w, 3]``, ``target0`` and
so on alike, and, where it is known, ``hand`` (the source's hand, bits packed along the width). The
metadata ``clip`` is JSON: ``seed`` (its number), ``tasks`` and ``instructions`` (one a target) and
``origin`` (what it was made from). An image edit is a clip of one frame.

A clip may have further pairs, between its targets: ``pairs`` are ``[from, to]`` of its films, 0 the
source and n + 1 target n, one a task and instruction, the plain ones first.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egoedit_ros.errors import UserError

MOST_NUMBERS = 1_000_000  # from here on numbers are for evaluation (vocabulary.EVALUATION_SEED)


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A clip and its edits. source, targets ``[n_edits]``: uint8 ``[t, h, w, 3]``; hand: bool
    ``[t, h, w]`` or None; origin: '' for the simulator; pairs: films (from, to) of each task and
    instruction, None: target n is made by the n-th."""

    seed: int
    tasks: list[str]
    instructions: list[str]
    source: np.ndarray
    targets: list[np.ndarray]
    hand: np.ndarray | None
    origin: str = ""
    pairs: list[tuple[int, int]] | None = None

    @property
    def films(self) -> list[tuple[int, int]]:
        """From which film to which each instruction leads, 0 the source, n + 1 target n."""
        return self.pairs or [(0, n + 1) for n in range(len(self.targets))]


def clip_path(folder: Path, number: int) -> Path:
    """Where the clip of a number lies."""
    return folder / f"{number:08d}.safetensors"


def write_stored(folder: Path, clip: StoredClip) -> Path:
    """Put a clip in ``folder``, whole or not at all. Raises UserError where it has no room."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {"source": np.ascontiguousarray(clip.source)}
    if clip.hand is not None:
        arrays["hand"] = np.packbits(clip.hand, axis=-1)
    arrays |= {f"target{i}": np.ascontiguousarray(t) for i, t in enumerate(clip.targets)}
    meta = {"seed": clip.seed, "tasks": clip.tasks, "instructions": clip.instructions}
    if clip.origin:
        meta["origin"] = clip.origin
    if clip.pairs:
        meta["pairs"] = clip.pairs
    path = clip_path(folder, clip.seed)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(arrays, part, metadata={"clip": json.dumps(meta)})
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise cannot_write(path, error) from None
    finally:
        part.unlink(missing_ok=True)
    return path


def cannot_write(path: Path, error: Exception) -> UserError:
    """What to say when a file of a long work cannot be written: a full disk, most of all."""
    reason = str(error).rpartition("error: ")[2]
    return UserError(
        f"cannot write {path} ({reason}); make room, then run the same command again: what was "
        "written is kept"
    )


def read_clip(path: Path) -> StoredClip:
    """Read one clip. Raises UserError when the file is not one of ours or is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            meta = json.loads(file.metadata()["clip"])
            source = file.get_tensor("source")
            hand = None
            if "hand" in file.keys():  # noqa: SIM118 (not a dict)
                bits = np.unpackbits(file.get_tensor("hand"), axis=-1)
                hand = bits[..., : source.shape[2]].astype(bool)
            pairs = [(int(a), int(b)) for a, b in meta.get("pairs", ())] or None
            count = max(map(max, pairs)) if pairs else len(meta["tasks"])
            targets = [file.get_tensor(f"target{i}") for i in range(count)]
            if pairs and (len(pairs) != len(meta["tasks"]) or min(a for a, _ in pairs) < 0):
                raise ValueError("pairs and tasks disagree")
        return StoredClip(
            meta["seed"],
            meta["tasks"],
            meta["instructions"],
            source,
            targets,
            hand,
            meta.get("origin", ""),
            pairs,
        )
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no stored clip ({error}); delete it and run again") from None


def read_origin(path: Path) -> str:
    """What a stored clip was made from, without reading its pictures."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return json.loads(file.metadata()["clip"]).get("origin", "")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no stored clip ({error}); delete it and run again") from None
