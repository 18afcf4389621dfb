# SPDX-License-Identifier: Apache-2.0
"""Stage ``detail``: teach the detail network what edits should have looked like, pixel by pixel.

It learns from squares of edits as streams make them (:mod:`egoedit_ros.train.detail_samples`), by
the likelihood of the target's colours under its answers (:mod:`egoedit_ros.model.detail`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.answers import Answers, choose, surprise
from egoedit_ros.model.autoencoder import CELL, EdgeAutoencoder
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.detail import ALONE, DetailNet
from egoedit_ros.model.pose import FRAME, mirrored, moved, shifted
from egoedit_ros.model.text import get_text_encoder
from egoedit_ros.stream.detail import SQUARES, Square, square_around
from egoedit_ros.train.autoencoder import EDITED
from egoedit_ros.train.detail_samples import SQUARE
from egoedit_ros.train.latents import SIDES, load_frozen
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.narrow import narrow_text

FARTHEST = 1  # cells that a square may be off where the stream would have it
ROOM = 2  # cells kept around it: what comes into sight when it is seen from another place
TURN, NEARER, MOVED = 12.0, 0.25, 6.0  # of another place: degrees, log of the scale, pixels
TEXTS = 1024  # encoded at a time
OUTSIDE = 16  # pixels beyond a square's sides; a hand farther out is not asked for
PIXEL = 0.2  # nats that a pixel's error in a pose counts as
PICTURES = ("source", "target", "made", "mask")
MIDDLE = Square(SQUARES[0], *[(SQUARE - SQUARES[0]) // 2] * 2)  # where a stream would have none


@dataclass(frozen=True)
class DetailData:
    """samples: the folder of stage ``detail_samples``; autoencoder: whose latents they are; forms:
    weights of stage ``forms``; places, lights: of those stages, where the network is to have any
    (without a file they are new, for ``bundle`` to replace). edited_weight: of pixels near the
    edit, beside 1 for all; warped: share of squares that are seen from another place; shown: share
    of batches in which the network is told where things are and of what form."""

    samples: Path
    autoencoder: Path
    forms: Path
    places: Path | None = None
    lights: Path | None = None
    batch: int = 16
    edited_weight: float = 4.0
    warped: float = 0.0
    shown: float = 0.0


class DetailSamples:
    """All samples of a folder, in memory: of each what a square may come to lie over.

    pictures: by name, uint8 ``[S, S, ...]`` each; rows ``[M, 3]``: of each picture its latent
    frame, its place there, its text. Of each latent frame, latents: float16 ``[2C, S/8, S/8]``;
    squares: where in these a stream would have its own; frames: which pictures are of it.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise UserError(f"no samples in {folder}; run the stage detail_samples first")
        self.pictures: dict[str, list[np.ndarray]] = {name: [] for name in PICTURES}
        self.latents: list[np.ndarray] = []
        self.squares: list[Square] = []
        self.frames: list[slice] = []
        self.poses: list[np.ndarray] = []
        self.texts: list[str] = []
        self.tasks: list[str] = []
        self.kinds: list[int] = []
        self.rows = np.concatenate([self._read(path) for path in paths])
        self.sided = np.array([bool(SIDES.search(text)) for text in self.texts])
        self.by_size = {size: [] for size in SQUARES}
        for index, frame in enumerate(self.rows[:, 0]):
            self.by_size[self.squares[frame].size].append(index)

    def _read(self, path: Path) -> np.ndarray:
        """Add a scene's samples; its rows."""
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            if "pose" not in file.keys():  # noqa: SIM118 (not a table)
                raise UserError(
                    f"{path} is of an earlier version, without poses; remove it and run the stage "
                    "detail_samples again"
                )
            told = json.loads(file.metadata()["texts"])
            pictures = {name: file.get_tensor(name) for name in PICTURES}
            latents = np.concatenate([file.get_tensor(n) for n in ("edited", "before")], 1)
            rows, poses = file.get_tensor("place"), file.get_tensor("pose")
        # The pictures of a latent frame follow each other.
        ends = np.searchsorted(rows[:, 0], np.arange(len(latents) + 1))
        rows = rows + np.array([len(self.squares), 0, len(self.texts)])
        rows[rows[:, 1] < 0, 1] = ALONE
        for of, begin, end in zip(latents, ends[:-1], ends[1:], strict=True):
            films = {name: film[begin:end] for name, film in pictures.items()}
            own = square_around(films["source"], films["made"], films["mask"]) or MIDDLE
            self.squares.append(self._keep(films, of, poses[begin:end], own))
        for task, text, kind in told:
            self.tasks.append(task)
            self.texts.append(text)
            self.kinds.append(KINDS.index(kind) if kind else len(KINDS))
        return rows

    def _keep(
        self, films: dict[str, np.ndarray], latents: np.ndarray, poses: np.ndarray, own: Square
    ) -> Square:
        """Keep what is at most ROOM cells around a square; the square's place in that."""
        most = films["source"].shape[1]
        size = min(own.size + 2 * ROOM * CELL, most)
        row, column = (min(max(b - ROOM * CELL, 0), most - size) for b in (own.row, own.column))
        around = Square(size, row, column)
        begin = len(self.pictures["source"])
        for name, film in films.items():
            self.pictures[name] += list(film[:, *around.pixels].copy())
        self.frames.append(slice(begin, len(self.pictures["source"])))
        self.latents.append(latents[:, *around.cells].copy())
        self.poses += list(shifted(poses, row, column))
        return Square(own.size, own.row - row, own.column - column)


def warp(films: dict[str, np.ndarray], own: Square, rng: np.random.Generator) -> tuple:
    """A latent frame's pictures as if seen from another place, by name: uint8 ``[n, s, s, ...]``;
    and what was done to places ``[2, 3]``.

    The middle of ``own`` comes to lie near the middle; beyond the pictures' sides they are
    mirrored.
    """
    half = own.size / 2 - 0.5
    matrix = cv2.getRotationMatrix2D(
        (own.column + half, own.row + half),
        rng.uniform(-TURN, TURN),
        math.exp(rng.uniform(-NEARER, NEARER)),
    )
    matrix[:, 2] += rng.uniform(-MOVED, MOVED, 2) - (own.column, own.row)
    seen = {
        name: np.stack(
            [
                cv2.warpAffine(
                    picture,
                    matrix,
                    (own.size, own.size),
                    flags=cv2.INTER_LINEAR if name == "mask" else cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REFLECT_101,
                )
                for picture in film
            ]
        )  # fmt: skip
        for name, film in films.items()
    }
    return seen, matrix.astype(np.float32)


def mirror_latents(model: EdgeAutoencoder, latents: Tensor) -> Tensor:
    """Latents ``[N, C, h, w]`` of the mirrored picture, as far as they tell it."""
    mean, std = (x[:, None, None] for x in (model.latents_mean, model.latents_std))
    cells = torch.einsum("ck,nchw->nkhw", model.basis, latents * std + mean)
    cells = cells.unflatten(1, (-1, CELL)).flip(2, -1).flatten(1, 2)
    return (torch.einsum("ck,nkhw->nchw", model.basis, cells) - mean) / std


class DetailStep:
    """One batch of squares: what their targets' colours are worth under the answers."""

    def __init__(self, model: DetailNet, settings: TrainSettings, data: DetailData) -> None:
        config = settings.editor
        self.model, self.data = model, data
        self.samples = DetailSamples(data.samples)
        self.autoencoder = load_frozen(data.autoencoder, config, dtype=torch.float32)
        encode = get_text_encoder(config.text_encoder, config.transformer.text_len)
        # Held once for every wording.
        texts = list(dict.fromkeys(self.samples.texts))
        self.text: dict[str, Tensor] = {}
        for begin in range(0, len(texts), TEXTS):
            part = texts[begin : begin + TEXTS]
            known = encode.many(part, torch.device("cpu")).half()
            self.text |= {text: row.clone() for text, row in zip(part, known, strict=True)}

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Squares of one size, about where a stream would have them, half of them mirrored."""
        samples = self.samples
        counts = np.array([len(of) for of in samples.by_size.values()])
        size = SQUARES[rng.choice(len(SQUARES), p=counts / counts.sum())]
        chosen = rng.choice(samples.by_size[size], self.data.batch)
        mirrored, plain = [], []
        for index in chosen:
            side = rng.random() < 0.5 and not samples.sided[samples.rows[index, 2]]
            (mirrored if side else plain).append(index)
        parts = [
            self.cut(which, flip, rng)
            for which, flip in ((plain, False), (mirrored, True))
            if which
        ]
        return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}

    def cut(self, which: list[int], flip: bool, rng: np.random.Generator) -> dict[str, Tensor]:
        """Samples as tensors: a cell farther up, down or to a side than a stream's at most, or as
        seen from another place."""
        s = self.samples
        out: dict[str, list] = {k: [] for k in (*PICTURES, "latents", "pose")}
        for index in which:
            warped = self.data.warped and rng.random() < self.data.warped
            pictures, latents, pose = (self._warped if warped else self._moved)(index, rng)
            out["pose"].append(torch.from_numpy(pose))
            for name, picture in pictures.items():
                out[name].append(torch.from_numpy(picture))
            out["latents"].append(latents)
        got = {k: torch.stack(v) for k, v in out.items()}
        got["mask"] = got["mask"][:, None].float() / 255
        for name in ("source", "target", "made"):
            got[name] = got[name].permute(0, 3, 1, 2).float() / 255
        rows = s.rows[which]
        got["place"] = torch.from_numpy(rows[:, 1])
        got["kinds"] = torch.tensor([s.kinds[i] for i in rows[:, 2]])
        got["anew"] = torch.tensor([float(s.tasks[i] != "recolour") for i in rows[:, 2]])
        got["embedded"] = torch.stack([self.text[s.texts[i]].float() for i in rows[:, 2]])
        if flip:
            for name in PICTURES:
                got[name] = got[name].flip(-1)
            got["pose"] = mirrored(got["pose"], got["source"].shape[-1])
            channels = got["latents"].shape[1] // 2
            halves = got["latents"].split(channels, 1)
            got["latents"] = torch.cat([mirror_latents(self.autoencoder, h) for h in halves], 1)
        return got

    def _moved(self, index: int, rng: np.random.Generator) -> tuple[dict, Tensor, np.ndarray]:
        s = self.samples
        frame = s.rows[index, 0]
        own, most = s.squares[frame], len(s.pictures["source"][index])
        begins = [
            int(np.clip(b + CELL * rng.integers(-FARTHEST, FARTHEST + 1), 0, most - own.size))
            for b in (own.row, own.column)
        ]
        square = Square(own.size, *begins)
        pictures = {name: s.pictures[name][index][square.pixels] for name in PICTURES}
        latents = torch.from_numpy(s.latents[frame][:, *square.cells]).float()
        return pictures, latents, shifted(s.poses[index], *begins)

    def _warped(self, index: int, rng: np.random.Generator) -> tuple[dict, Tensor, np.ndarray]:
        s = self.samples
        frame = s.rows[index, 0]
        of = s.frames[frame]
        films = {name: np.stack(s.pictures[name][of]) for name in PICTURES}
        films, matrix = warp(films, s.squares[frame], rng)
        both = torch.from_numpy(np.stack([films["made"], films["source"]])).permute(0, 1, 4, 2, 3)
        coded = self.autoencoder.encode(both.float() / 127.5 - 1, fine=False)
        pictures = {name: film[index - of.start] for name, film in films.items()}
        return pictures, coded.latents.flatten(0, 1), moved(s.poses[index], matrix)

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        shown = rng.random() < self.data.shown
        return detail_loss(self.model, self.batch(rng), self.data.edited_weight, shown)


def answer(model: DetailNet, batch: dict[str, Tensor], shown: bool = False) -> Answers:
    """The network's answers to a batch. shown: it is told where things are and of what form, as far
    as that is known of the scene."""
    known = {}
    if shown and model.config.forms:
        kinds = F.one_hot(batch["kinds"], model.config.forms + 1).float()
        known = {"pose": batch["pose"], "kinds": kinds}
    return model(
        batch["source"], batch["made"], batch["mask"], batch["latents"], batch["place"],
        model.read(batch["embedded"]), **known,
    )  # fmt: skip


def pose_errors(told: Tensor, pose: Tensor, side: int) -> dict[str, Tensor]:
    """How far poses ``[N, POSE]`` are off, by body: where its origin is and where a unit along its
    axes leads (pixels), its line of sight; and the curl."""
    off = (told - pose).abs()
    at = pose[:, FRAME : FRAME + 2]
    near = ((at > -OUTSIDE) & (at < side + OUTSIDE)).all(1).float()
    shares = {"thing": torch.full_like(near, 1 / len(near)), "hand": near / near.sum().clamp(min=1)}
    out = {}
    for begin, (body, share) in zip((0, FRAME), shares.items(), strict=True):
        for name, of in (("", (0, 2)), ("_axes", (2, 8)), ("_line", (8, 11))):
            part = off[:, begin + of[0] : begin + of[1]]
            out[body + name] = (part.mean(1) * share).sum()
    out["curl"] = (off[:, -1] * shares["hand"]).sum()
    return out


def detail_loss(
    model: DetailNet, batch: dict[str, Tensor], edited_weight: float, shown: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Surprise, more of it near the edit, and what poses and forms are off; gains of what would be
    shown over what was made."""
    answers = answer(model, batch, shown)
    source, target, made = batch["source"], batch["target"], batch["made"]
    edited = ((source - target).abs().amax(1) > EDITED / 2).float()
    near = F.max_pool2d(edited[:, None], 9, stride=1, padding=4)[:, 0]
    weight = 1 + edited_weight * torch.maximum(near, (batch["mask"][:, 0] > 0).float())
    surprised = (surprise(answers, target) * weight).sum() / weight.sum()
    loss, told = surprised, {}
    if answers.pose is not None:
        off = pose_errors(answers.pose, batch["pose"], target.shape[-1])
        unknown = F.cross_entropy(answers.kinds.expand(len(target), -1), batch["kinds"])
        more = model.anew(model.read(batch["embedded"]).detach())[:, 0]
        coloured = F.binary_cross_entropy_with_logits(more, batch["anew"])
        loss = loss + unknown + coloured
        for name, value in off.items():
            loss = loss + value * (1.0 if name.endswith(("line", "curl")) else PIXEL)
        told = {f"off_{n}": off[n].detach() for n in ("thing", "thing_axes", "hand", "curl")}
        told |= {"surprise": surprised.detach(), "kind": unknown.detach()}
        told["anew"] = coloured.detach()
    with torch.no_grad():
        shown = (choose(answers)[:, :, None] * answers.colors).sum(1)
        before = ((source - target).square().sum(1) * edited).sum().clamp(min=1e-6)
        gain = 1 - ((shown - target).square().sum(1) * edited).sum() / before
        had = 1 - ((made - target).square().sum(1) * edited).sum() / before
    return loss, {"gain": gain, "had": had, **told}


def train_detail(settings: TrainSettings, data: DetailData, start: Path | None = None) -> Path:
    """Run the stage; the checkpoint is a :class:`DetailNet`.

    start: weights to begin from; they may be of a network that is ``told`` more and has fewer
    blocks, no forms, or sees more ``cells``.
    """
    torch.manual_seed(settings.seed)
    model = DetailNet(settings.editor).to(memory_format=torch.channels_last)
    step = DetailStep(model, settings, data)
    if start is not None:
        _begin_from(model, start, settings.editor, step.text)
    if model.config.forms:
        if model.config.forms != len(KINDS):
            raise UserError(
                f"detail: forms is {model.config.forms}, but the samples know {len(KINDS)} kinds "
                f"of things; set forms to {len(KINDS)} or 0"
            )
        fill(model.forms, read_safetensors(data.forms), data.forms)
        model.forms.requires_grad_(False)
        if model.config.places:
            if data.places is not None:
                fill(model.places, read_safetensors(data.places), data.places)
            model.places.requires_grad_(False)
        if model.config.lights:
            if data.lights is not None:
                fill(model.lights, read_safetensors(data.lights), data.lights)
            model.lights.requires_grad_(False)
    return Trainer(model, settings, step, data={"data": data.__dict__}).run()


def _begin_from(
    model: DetailNet, start: Path, config: EditorConfig, texts: dict[str, Tensor]
) -> None:
    """Fill ``model`` from weights of its own make, or of a lesser one that is told more."""
    weights = read_safetensors(start)
    own = model.state_dict()
    told = len(weights.get("text.0.bias", ()))
    if told < model.config.told or weights.keys() == own.keys() and told == model.config.told:
        fill(model, weights, start)
        return
    latents = weights.get("latents.weight", own["latents.weight"])
    if latents.shape[-1] > model.config.cells == 1:
        weights["latents.weight"] = latents[:, :, 1:2, 1:2]
    # What the lesser one has not begins as a new network's.
    wide = DetailNet(replace(config, detail=replace(model.config, told=told)))
    fill(wide, wide.state_dict() | weights, start)
    known = torch.stack(list(texts.values()))
    narrow_text(wide, model, (part.float() for part in known.split(64)))
