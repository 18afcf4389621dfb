# SPDX-License-Identifier: Apache-2.0
"""Encoded clips on disk: what the transformer's stages read, one clip a file or many a shard.

Both are safetensors files. One clip (``00000012.safetensors``) has the tensors ``latents``,
``edited`` and ``text`` of :class:`LatentClip`; a shard (``shard-00000012.safetensors``, named by
its first clip) has them as ``00000012.latents`` and so on. The metadata tells instructions and
tasks. Tensors are mapped, not loaded: opening a folder reads headers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from safetensors import SafetensorError, safe_open

from egoedit_ros.data.clip import cannot_write
from egoedit_ros.errors import UserError

if TYPE_CHECKING:  # reading processes are ready in a moment, because they need no torch
    from torch import Tensor

TENSORS = ("latents", "edited", "text")
SHARD = "shard-"


@dataclass(slots=True)
class LatentClip:
    """One clip, both ways round (the second mirrored).

    latents: fp16 ``[2, 1 + E, F, C, h, w]``: the source, then E targets; edited: bool
    ``[2, E, F, h, w]``, latent cells in which a pixel of the target differs; text fp16
    ``[E, L, text_dim]``; tasks: of each edit, empty where the file does not say. In a reading
    process (:meth:`LatentFolder.arrays`) they are numpy arrays of the same kinds.
    """

    latents: Tensor
    edited: Tensor
    text: Tensor
    tasks: tuple[str, ...] = ()

    def only(self, edits: Sequence[int]) -> LatentClip:
        """The clip with some of its edits."""
        keep = list(edits)
        return LatentClip(
            self.latents[:, [0, *(i + 1 for i in keep)]],
            self.edited[:, keep],
            self.text[keep],
            tuple(self.tasks[i] for i in keep) if self.tasks else (),
        )

    def lasting(self, frames: int) -> LatentClip:
        """The clip with at least so many latent frames: its last one stands still.

        For pictures among videos. With the ``edge`` autoencoder, which codes each latent frame by
        itself, this is just what a still video's latents are.
        """
        have = self.latents.shape[2]
        if frames <= have:
            return self
        held = [*range(have), *[have - 1] * (frames - have)]
        return LatentClip(self.latents[:, :, held], self.edited[:, :, held], self.text, self.tasks)

    def tensors(self) -> LatentClip:
        """The same with tensors in place of numpy arrays."""
        import torch

        made = (torch.from_numpy(getattr(self, name)) for name in TENSORS)
        return LatentClip(*made, self.tasks)


def write_latents(
    folder: Path,
    clips: Mapping[str, LatentClip],
    instructions: Mapping[str, list[str]],
    shard: bool,
) -> Path:
    """Put encoded clips (by stem) into one file, whole or not at all; returns it.

    shard: many clips in one file; else there must be just one.
    """
    from safetensors.torch import save_file

    stems = sorted(clips)
    if not shard and len(stems) != 1:
        raise ValueError("one clip to a file, or a shard")
    tensors = {
        f"{stem}.{name}" if shard else name: getattr(clips[stem], name).contiguous()
        for stem in stems
        for name in TENSORS
    }
    if shard:
        notes = {
            stem: {"tasks": list(clips[stem].tasks), "instructions": instructions[stem]}
            for stem in stems
        }
        meta = {"clips": json.dumps(notes)}
    else:
        meta = {
            "instructions": json.dumps(instructions[stems[0]]),
            "tasks": json.dumps(list(clips[stems[0]].tasks)),
        }
    path = folder / f"{SHARD if shard else ''}{stems[0]}.safetensors"
    part = path.with_suffix(".part")
    try:
        save_file(tensors, part, metadata=meta)
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise cannot_write(path, error) from None
    finally:
        part.unlink(missing_ok=True)
    return path


@dataclass(frozen=True, slots=True)
class _Entry:
    stem: str
    path: Path
    prefix: str
    tasks: tuple[str, ...]
    edits: tuple[int, ...] | None  # None: all of them


class LatentFolder(Sequence[LatentClip]):
    """The encoded clips of a folder in the order of their numbers, read one by one when asked for.

    tasks: only edits of these (clips without any are left out). share: a part of the clips, 0..1;
    a smaller share is always a part of a larger one. Raises UserError where nothing is left, and
    for files that are no latents.
    """

    def __init__(
        self, folder: Path, tasks: Iterable[str] | None = None, share: float = 1.0
    ) -> None:
        self.folder = folder
        wanted = None if tasks is None else frozenset(tasks)
        entries = [e for path in sorted(folder.glob("*.safetensors")) for e in _entries(path)]
        if not entries:
            raise UserError(f"no latents in {folder}; run: egoedit train latents")
        entries = [e for e in entries if crc32(e.stem.encode()) < share * 2**32]
        if wanted is not None:
            if any(not e.tasks for e in entries):
                raise UserError(f"latents in {folder} do not tell their tasks; encode them again")
            entries = [_with_tasks(e, wanted) for e in entries]
            entries = [e for e in entries if e.edits]
        if not entries:
            what = f"of {', '.join(sorted(wanted))}" if wanted else f"in a share of {share:g}"
            raise UserError(f"{folder} has no clip {what}; choose others")
        self._entries = sorted(entries, key=lambda e: e.stem)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> LatentClip:
        return self._read(index, "pt")

    def arrays(self, index: int) -> LatentClip:
        """The clip as numpy arrays, without torch."""
        return self._read(index, "numpy")

    def _read(self, index: int, framework: str) -> LatentClip:
        entry = self._entries[index]
        try:
            with safe_open(entry.path, framework) as file:
                parts = [file.get_tensor(entry.prefix + name) for name in TENSORS]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{entry.path} cannot be read ({error}); encode it again") from None
        clip = LatentClip(*parts, entry.tasks)
        return clip if entry.edits is None else clip.only(entry.edits)

    def __iter__(self) -> Iterator[LatentClip]:
        return (self[i] for i in range(len(self)))

    def shape(self) -> str:
        """Sizes that all clips to be trained on together share, of the first: for people."""
        clip = self.arrays(0)
        latents, text = clip.latents.shape[3:], clip.text.shape[1:]
        return " and ".join("x".join(map(str, sizes)) for sizes in (latents, text))

    @property
    def stems(self) -> list[str]:
        """The clips' numbers, as in their names."""
        return [e.stem for e in self._entries]


def _with_tasks(entry: _Entry, wanted: frozenset[str]) -> _Entry:
    edits = tuple(i for i, task in enumerate(entry.tasks) if task in wanted)
    return _Entry(entry.stem, entry.path, entry.prefix, entry.tasks, edits)


def _entries(path: Path) -> list[_Entry]:
    try:
        with safe_open(path, "numpy") as file:
            meta, keys = file.metadata() or {}, set(file.keys())
        if path.name.startswith(SHARD):
            notes = json.loads(meta["clips"])
            found = [
                _Entry(stem, path, f"{stem}.", tuple(note["tasks"]), None)
                for stem, note in notes.items()
            ]
        else:
            tasks = tuple(json.loads(meta.get("tasks", "[]")))
            found = [_Entry(path.stem, path, "", tasks, None)]
        if any(e.prefix + name not in keys for e in found for name in TENSORS):
            raise KeyError(TENSORS[0])
        return found
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path} holds no latents ({error}); delete it and run again") from None


def stems_in(folder: Path) -> set[str]:
    """Numbers of the clips that are encoded already."""
    return {e.stem for path in folder.glob("*.safetensors") for e in _entries(path)}
