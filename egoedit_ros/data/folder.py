# SPDX-License-Identifier: Apache-2.0
"""A folder of stored clips that is made in several runs: which input has which numbers.

``made.json`` beside the clips keeps the options that they were made with and the inputs in the
order of their coming; input i has the numbers from i times ``windows`` on. More inputs can be added
later, in any order, and what is there keeps its numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from egoedit_ros.data.clip import MOST_NUMBERS, StoredClip, clip_path, write_stored
from egoedit_ros.errors import UserError

MANIFEST = "made.json"


class ClipFolder:
    """Opens or makes the folder. options: all that decides the pixels, as plain JSON values;
    ``windows`` among them. Raises UserError where the folder was made with other options."""

    def __init__(self, folder: Path, options: dict) -> None:
        self.folder, self.options = folder, json.loads(json.dumps(options))
        self._numbers: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {folder} ({error.strerror}); choose another folder"
            ) from None
        path = folder / MANIFEST
        if path.exists():
            self._read(path)
        elif any(folder.glob("*.safetensors")):
            raise UserError(
                f"{folder} has clips but no {MANIFEST}, so they are of another kind; choose "
                "another folder"
            )

    def _read(self, path: Path) -> None:
        try:
            made = json.loads(path.read_text(encoding="utf-8"))
            before, inputs = dict(made["options"]), list(made["inputs"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); start in another folder") from None
        for name in sorted(before.keys() | self.options.keys()):
            if before.get(name) != self.options.get(name):
                raise UserError(
                    f"{self.folder} was made with {name} {before.get(name)!r}, not "
                    f"{self.options.get(name)!r}; give the same, or choose another folder"
                )
        self._numbers = {key: number for number, key in enumerate(inputs)}

    def add(self, keys: Iterable[str]) -> None:
        """Note inputs; new ones get the next numbers. Raises UserError when they run out."""
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        most = MOST_NUMBERS // self.options["windows"]
        if len(self._numbers) > most:
            raise UserError(
                f"one folder holds {most} inputs of {self.options['windows']} windows; lower "
                "--windows or make several folders"
            )
        path = self.folder / MANIFEST
        part = path.with_suffix(f".{os.getpid()}.part")
        made = {"options": self.options, "inputs": list(self._numbers)}
        part.write_text(json.dumps(made, indent=1, ensure_ascii=False), encoding="utf-8")
        part.replace(path)

    def number(self, key: str) -> int:
        """The first clip's number of an input."""
        return self._numbers[key] * self.options["windows"]

    def done(self, key: str) -> bool:
        """Whether the clips of an input are all there."""
        return clip_path(self.folder, self.number(key)).exists()


def write_windows(folder: Path, first: int, clips: Sequence[StoredClip]) -> int:
    """Write an input's clips as ``first`` and up; returns how many.

    The first comes last: where it is there, so are the others.
    """
    from dataclasses import replace

    for offset in reversed(range(len(clips))):
        write_stored(folder, replace(clips[offset], seed=first + offset))
    return len(clips)
