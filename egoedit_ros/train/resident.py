# SPDX-License-Identifier: Apache-2.0
"""Clips held in a GPU's memory, more of them as they are rendered.

A GPU trains ``edge`` faster than files can be read and cut on the CPU. So clips are read once, by a
thread, while simulators write them; pixels, latents and text embeddings stay on the device, and a
batch is one indexing there. What a step draws follows from the seed, its number *and* from how many
clips were there by then: unlike the stages that read a folder, such a run cannot be repeated bit by
bit.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.data.clip import MOST_NUMBERS, StoredClip, read_clip
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.text import MiniLM, get_text_encoder
from egoedit_ros.train.batches import Batch, FlowData
from egoedit_ros.train.latents import SIDES

CELL = 8  # pixels of a latent cell
READ_AT_ONCE = 16
LOOK_EVERY = 0.5  # s between looks for new clips
EDITED_LEVEL = 12  # of 255, as the simulator suite has it


@dataclass(frozen=True)
class ResidentData:
    """folders: where clips appear. clips: room for so many; pixels: how many of them keep their
    pixels (all have latents). frames, edits: pixel frames of a clip, and its edits at most (a
    clip may have fewer); films: its films at most, 0: a source and one an edit.
    chances: how often a task's edits are drawn, 1 where it is not named. consume: delete what was
    read. wait: clips to have before training begins."""

    folders: tuple[Path, ...]
    clips: int = 1000
    pixels: int = 1000
    frames: int = 13
    edits: int = 3
    films: int = 0
    chances: dict[str, float] | None = None
    consume: bool = False
    wait: int = 1
    below: int = MOST_NUMBERS  # numbers from here on evaluate


class ResidentClips:
    """See :mod:`egoedit_ros.train.resident`. Close it, or use it in a ``with``."""

    def __init__(self, data: ResidentData, config: EditorConfig, device: torch.device) -> None:
        if data.frames % 4 != 1:
            raise UserError(f"clips of {data.frames} frames are no 1 + 4n; change frames")
        self.data, self.config, self.device = data, config, device
        width, height = config.size
        room, videos = data.clips, data.films or 1 + data.edits
        shape = (height // CELL, width // CELL)
        latents = 1 + data.frames // 4
        sizes, text = config.transformer, config.transformer.text_len
        make = lambda *s, dtype: torch.zeros(s, dtype=dtype, device=device)  # noqa: E731
        pixels = min(data.pixels, room)
        self.video = make(pixels, videos, data.frames, height, width, 3, dtype=torch.uint8)
        self.latents = make(
            room, 2, videos, latents, sizes.out_channels, *shape, dtype=torch.float16
        )
        self.edited = make(room, 2, data.edits, latents, *shape, dtype=torch.bool)
        self.ends = make(room, data.edits, 2, dtype=torch.int64)  # films from which, to which
        self.text = make(room, data.edits, text, sizes.text_dim, dtype=torch.float16)
        self.count_of_edits = make(room, dtype=torch.int64)
        self.length = make(room, dtype=torch.int64)  # latent frames
        self.sided = make(room, dtype=torch.bool)  # not to be mirrored
        embed(config, [""], device)  # two threads must not load the encoder at once
        self.count = 0
        self._entries: tuple[Tensor, Tensor, Tensor] | None = None  # clip, edit, chance
        self._rows: list[tuple[int, int, float]] = []
        self._seen: set[tuple[str, str]] = set()
        self._waiting: list[Path] = []
        self._looked = 0.0
        self._encoder: EdgeAutoencoder | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._failure: Exception | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self._thread.start()

    def __enter__(self) -> ResidentClips:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Read no more clips."""
        self._stop.set()
        self._thread.join()

    @property
    def encoder(self) -> EdgeAutoencoder | None:
        """What latents are made with."""
        return self._encoder

    def wait_for(self, count: int, seconds: float = 600.0) -> None:
        """Until so many clips are here. Raises UserError when none comes for ``seconds``."""
        last, since = self.count, time.monotonic()
        while self.count < min(count, self._room()):
            self._check()
            if self.count > last:
                last, since = self.count, time.monotonic()
            if time.monotonic() - since > seconds:
                names = ", ".join(str(f) for f in self.data.folders)
                raise UserError(f"{self.count} of {count} clips are in {names}; render more")
            time.sleep(0.02)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- reading ---------------------------------------------------------------

    def _read_on(self) -> None:
        try:
            while not self._stop.is_set() and self.count < self.data.clips:
                if not self._read_some():
                    time.sleep(0.05)
        except Exception as error:  # raised where the next batch is drawn
            self._failure = error

    def _room(self) -> int:
        """Clips there is room for. Without an encoder, only such as can be encoded later."""
        return self.data.clips if self._encoder is not None else len(self.video)

    def _new_paths(self) -> list[Path]:
        """Some that were not read. Looks seldom: listing thousands of names takes the interpreter
        from the thread that trains."""
        room = self._room() - self.count
        if not self._waiting and room and time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            names = [
                (folder, name)
                for folder in map(str, self.data.folders)
                if os.path.isdir(folder)
                for name in os.listdir(folder)
            ]
            new = {n for n in names if n[1].endswith(".safetensors")} - self._seen
            self._seen |= new
            paths = [Path(folder) / name for folder, name in sorted(new)]
            self._waiting = [p for p in paths if int(p.stem) < self.data.below]
            # Every folder's clips among those that keep their pixels, which are the first ones.
            random.Random(len(self._seen)).shuffle(self._waiting)
        count = min(READ_AT_ONCE, room)
        paths, self._waiting = self._waiting[:count], self._waiting[count:]
        return paths

    def _read_some(self) -> bool:
        paths = self._new_paths()
        if not paths:
            return False
        clips = [read_clip(path) for path in paths]
        for length in sorted({len(clip.source) for clip in clips}):
            alike = [clip for clip in clips if len(clip.source) == length]
            if self._stream is None:
                self._put(alike)
            else:
                with torch.cuda.stream(self._stream):
                    self._put(alike)
        if self.data.consume:
            for path in paths:
                path.unlink(missing_ok=True)
        return True

    @torch.no_grad()
    def _put(self, clips: Sequence[StoredClip]) -> None:
        """Take in clips of one length."""
        first, n, most = self.count, len(clips), self.latents.shape[2]
        edits = [_of(clip, most, self.data.edits) for clip in clips]
        texts = [c.instructions[i] for c, known in zip(clips, edits, strict=True) for i in known]
        embedded = iter(embed(self.config, texts, self.device))
        length = min(self.data.frames, len(clips[0].source))
        length -= (length - 1) % 4
        shape = (length, *self.video.shape[3:])
        pictures = np.zeros((n, most, *shape), np.uint8)
        ends = np.zeros((n, self.data.edits, 2), np.int64)
        counts = [len(known) for known in edits]
        rows = list(self._rows)
        chances = self.data.chances or {}
        for row, clip in enumerate(clips):
            for number, video in enumerate([clip.source, *clip.targets][:most]):
                pictures[row, number] = video[:length]
            for number, edit in enumerate(edits[row]):
                ends[row, number] = clip.films[edit]
                self.text[first + row, number] = next(embedded)
                rows.append((first + row, number, chances.get(clip.tasks[edit], 1.0)))
        pixels = torch.from_numpy(pictures).to(self.device)
        sided = [any(SIDES.search(t) for t in c.instructions) for c in clips]
        with self._lock:
            self.count_of_edits[first : first + n] = torch.tensor(counts, device=self.device)
            self.sided[first : first + n] = torch.tensor(sided, device=self.device)
            self.ends[first : first + n] = torch.from_numpy(ends)
            room = max(0, min(n, len(self.video) - first))
            self.video[first : first + room, :, :length] = pixels[:room]
            self.length[first : first + n] = 1 + length // 4
            self._encode(first, pixels)
            columns = [torch.tensor(c, device=self.device) for c in zip(*rows, strict=True)]
            if self._stream is not None:
                self._stream.synchronize()
            self._rows, self._entries = rows, tuple(columns)
            self.count += n

    def _encode(self, first: int, pixels: Tensor, cells: bool = True) -> None:
        """Latents, where there is an autoencoder, and edited cells of clips ``[n, V, t, h, w, 3]``
        from ``first`` on, both ways round."""
        n = len(pixels)
        if cells:
            for row in range(n):
                self._mark(first + row, pixels[row])
        sided = self.sided[first : first + n, None, None, None, None, None]
        frames = 1 + pixels.shape[2] // 4
        for turn in range(2):
            if turn:
                pixels = torch.where(sided, pixels, pixels.flip(4))
            if self._encoder is not None:
                made = encode(self._encoder, pixels.flatten(0, 1))
                made = made.unflatten(0, pixels.shape[:2])
                self.latents[first : first + n, turn, :, :frames] = made

    def _mark(self, clip: int, films: Tensor) -> None:
        """Which cells each of a clip's edits changes; in bytes, for these are many pixels."""
        sided = bool(self.sided[clip])
        for edit in range(int(self.count_of_edits[clip])):
            a, b = (films[i] for i in self.ends[clip, edit].tolist())
            changed = torch.maximum(a, b) - torch.minimum(a, b) > EDITED_LEVEL
            there = changed.unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL)).any(-1)
            there = there.any(4).any(2)  # [t, h, w]
            there = torch.cat([there[:1], there[1:].unflatten(0, (-1, 4)).any(1)])
            self.edited[clip, 0, edit, : len(there)] = there
            self.edited[clip, 1, edit, : len(there)] = there if sided else there.flip(-1)

    @torch.no_grad()
    def encode_with(self, autoencoder: EdgeAutoencoder) -> None:
        """Make the latents of all clips, and of those to come. Those without pixels keep theirs."""
        with self._lock:
            self._encoder = autoencoder
            begin, count = 0, min(self.count, len(self.video))
            lengths = self.length[:count].tolist()
            while begin < count:
                end = begin + 1
                while end < min(begin + READ_AT_ONCE, count) and lengths[end] == lengths[begin]:
                    end += 1
                films = self.video[begin:end, :, : 4 * lengths[begin] - 3]
                self._encode(begin, films, cells=False)
                begin = end

    # --- drawing ---------------------------------------------------------------

    def _draw(
        self, rng: np.random.Generator, count: int, with_pixels: bool, frames: int = 1
    ) -> tuple[torch.Generator, Tensor, Tensor]:
        """A generator on the device, and ``count`` clips of so many latent frames or more, and
        edits of theirs."""
        self._check()
        self.wait_for(max(1, self.data.wait))
        made = torch.Generator(self.device)
        made.manual_seed(int(rng.integers(2**62)))
        entries = self._entries
        if self._stream is not None:  # made on the reading thread's stream
            for column in entries:
                column.record_stream(torch.cuda.current_stream(self.device))
        clip, edit, chance = entries
        if with_pixels:
            chance = chance * (clip < len(self.video))
        if frames > 1:
            chance = chance * (self.length[clip] >= frames)
            if not chance.any():
                longest = int(self.length[clip].max())
                raise UserError(f"clips have {longest} latent frames, not {frames}")
        drawn = torch.multinomial(chance, count, replacement=True, generator=made)
        return made, clip[drawn], edit[drawn]

    def draw(
        self, rng: np.random.Generator, data: FlowData, with_pixels: bool = False
    ) -> tuple[Batch, Where]:
        """Windows of latents as :func:`~egoedit_ros.train.batches.sample_batch` draws them, and
        where they are. with_pixels: of clips whose pixels are here."""
        n, frames = data.batch, data.frames
        made, clip, edit = self._draw(rng, n, with_pixels, frames)
        uniform = lambda: torch.rand(n, generator=made, device=self.device)  # noqa: E731
        turn = (uniform() * 2).long()
        free = self.length[clip] - frames + 1
        first = (uniform() * free).long()
        first = torch.where(uniform() < data.from_start, torch.zeros_like(first), first)
        other = (uniform() * (1 + self.count_of_edits[clip])).long()
        before, after = self.ends[clip, edit].unbind(-1)
        # Another edit's film, or the source itself.
        other = torch.where(other > 0, self.ends[clip, (other - 1).clamp(min=0), 1], before)
        past = torch.where(uniform() < data.switched, other, after)
        window = first[:, None] + torch.arange(frames, device=self.device)
        h, w = self.latents.shape[-2:]
        height, width = (min(data.crop, h), min(data.crop, w)) if data.crop else (h, w)
        corners = torch.zeros(n, 2, dtype=torch.int64, device=self.device)
        edited = self.edited[clip[:, None], turn[:, None], edit[:, None], window]
        if data.crop:
            there = edited.any(1) & (uniform() >= data.anywhere)[:, None, None]
            rim = 2 if min(height, width) > 4 else 0
            corners = corner_around(there, (height, width), made, rim) // 2 * 2
            edited = crop(edited.unsqueeze(2), corners, height, width).squeeze(2)

        def video(which: Tensor) -> Tensor:
            whole = self.latents[clip[:, None], turn[:, None], which[:, None], window]
            return (crop(whole, corners, height, width) if data.crop else whole).float()

        batch = Batch(
            video(before), video(after), video(past), edited.float(),
            self.text[clip, edit].float(), corners // 2,
        )  # fmt: skip
        return batch, Where(clip, edit, turn, window)

    def pictures(
        self, where: Where, corners: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """source, target ``[n, F, 4, 3, height, width]`` in -1..1 of latent windows: parts of
        ``size`` (height, width) at ``corners`` ``[n, 2]`` (pixels). A clip's first latent frame is
        its first picture, four times."""
        n, frames = where.window.shape
        four = torch.arange(4, device=self.device)
        time = (1 + 4 * (where.window[..., None] - 1) + four).clamp(min=0).flatten(1)
        high, wide = size
        # The mirror image of a square is the square at the mirrored place, mirrored.
        flip = (where.turn == 1) & ~self.sided[where.clip]
        left = torch.where(flip, self.video.shape[4] - wide - corners[:, 1], corners[:, 1])
        rows = corners[:, 0, None] + torch.arange(high, device=self.device)
        columns = left[:, None] + torch.arange(wide, device=self.device)
        made = []
        for which in self.ends[where.clip, where.edit].unbind(-1):
            cut = self.video[
                where.clip[:, None, None, None], which[:, None, None, None],
                time[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :],
            ]  # fmt: skip
            cut = cut.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
            cut = torch.where(flip[:, None, None, None, None], cut.flip(-1), cut)
            made.append(cut.unflatten(1, (frames, 4)))
        return made[0], made[1]

    def sample(self, rng: np.random.Generator, batch: int, size: int) -> tuple[Tensor, Tensor]:
        """Squares of single latent frames around edits, in some light: source, target
        ``[batch, 4, 3, size, size]`` in -1..1."""
        if size % CELL or size > min(self.video.shape[3:5]):
            raise UserError(f"a crop of {size} pixels: give a multiple of {CELL} inside the frame")
        made, clip, edit = self._draw(rng, batch, True)
        uniform = lambda *s: torch.rand(batch, *s, generator=made, device=self.device)  # noqa: E731
        turn = (uniform() * 2).long()
        window = (uniform(1) * self.length[clip, None]).long()
        where = Where(clip, edit, turn, window)
        edited = self.edited[clip, turn, edit, window[:, 0]] & (uniform() < 0.8)[:, None, None]
        cells = size // CELL
        corners = corner_around(edited, (cells, cells), made, 0) * CELL
        source, target = (x[:, 0] for x in self.pictures(where, corners, (size, size)))
        gain = 0.75 + 0.4 * uniform(1, 1, 1, 1)
        return tuple(((x + 1) * gain - 1).clamp(max=1) for x in (source, target))


@dataclass(slots=True)
class Where:
    """Windows of latents: clip, edit and turn (1: mirrored) ``[n]``, window ``[n, F]``."""

    clip: Tensor
    edit: Tensor
    turn: Tensor
    window: Tensor


def corner_around(there: Tensor, size: tuple[int, int], rng: torch.Generator, rim: int) -> Tensor:
    """Corners ``[n, 2]`` of squares that hold a random cell of ``there`` [n, h, w], ``rim`` cells
    from their edges; anywhere, where there is none."""
    n, h, w = there.shape
    height, width = size
    cells = there.flatten(1).float()
    none = cells.sum(1, keepdim=True) == 0
    cell = torch.multinomial(torch.where(none, torch.ones_like(cells), cells), 1, generator=rng)
    place = torch.cat([cell // w, cell % w], 1)
    shift = torch.rand(n, 2, generator=rng, device=there.device)
    sides = torch.tensor([height, width], device=there.device)
    limits = torch.tensor([h - height, w - width], device=there.device)
    around = place - rim - (shift * (sides - 2 * rim)).long()
    anywhere = (shift * (limits + 1)).long()
    return torch.where(none, anywhere, around).clamp(min=0).minimum(limits)


def crop(x: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Each sample's part of ``x`` [n, F, C, h, w] at its corner (cells of x)."""
    rows = corners[:, 0, None] + torch.arange(height, device=x.device)
    columns = corners[:, 1, None] + torch.arange(width, device=x.device)
    index = torch.arange(len(x), device=x.device)[:, None, None]
    cut = x.movedim((-2, -1), (1, 2))[index, rows[:, :, None], columns[:, None, :]]
    return cut.movedim((1, 2), (-2, -1))


def encode(autoencoder: EdgeAutoencoder, pixels: Tensor) -> Tensor:
    """uint8 ``[V, t, h, w, 3]`` to fp16 latents ``[V, F, C, h/8, w/8]``."""
    # One film at a time stays in a CPU's cache: a tenth of the time.
    parts = pixels.split(1) if pixels.device.type == "cpu" else [pixels]
    return torch.cat([_encode_films(autoencoder, part) for part in parts])


def _encode_films(autoencoder: EdgeAutoencoder, pixels: Tensor) -> Tensor:
    like = autoencoder.encoder_in.weight
    pictures = (pixels.movedim(-1, 2).float() / 127.5 - 1).to(like.dtype)
    first = autoencoder.encode(pictures[:, :1], fine=False).latents
    rest = pictures[:, 1:].unflatten(1, (-1, 4)).flatten(0, 1)
    rest = autoencoder.encode(rest, fine=False).latents
    return torch.cat([first[:, None], rest.unflatten(0, (len(pixels), -1))], 1).half()


def _of(clip: StoredClip, films: int, most: int) -> list[int]:
    """At most so many of the clip's edits between its first ``films`` films: those of the source,
    then any others."""
    known = [n for n, ends in enumerate(clip.films) if max(ends) < films]
    plain = [n for n in known if clip.films[n][0] == 0]
    others = [n for n in known if clip.films[n][0]]
    random.Random(clip.seed).shuffle(others)
    return [*plain, *others][:most]


def embed(config: EditorConfig, texts: Sequence[str], device: torch.device) -> Tensor:
    """Embeddings fp16 ``[n, L, text_dim]``, all at once where the encoder can."""
    sizes = config.transformer
    encoder = get_text_encoder(config.text_encoder, sizes.text_len, config.text_folder)
    if isinstance(encoder, MiniLM):
        return encoder.many(texts, device).half()
    return torch.stack([encoder(text) for text in texts]).half().to(device)
