# SPDX-License-Identifier: Apache-2.0
"""Stage ``places``: learn to tell where things and the hand are from cuts that are put straight by
a guess (:mod:`egoedit_ros.model.places`), in the pictures of ``room_views``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.places import (
    WHERE,
    PlaceNet,
    Places,
    Seen,
    apart,
    cut_by,
    harmonics_of,
    in_picture,
)
from egoedit_ros.model.pose import FRAME
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.rooms import Rooms

BODIES = ("thing", "hand")
SPREAD = 0.7  # logarithm of how much further than usual a guess is off
UNIT_WRONG, LEAN_WRONG = 0.7, 0.5  # of that: log of the unit, radians
LIGHT = 0.15  # how much pictures are lighter, darker, of another tint: logs
BEYOND = 2  # pixels beyond a picture's sides; a body farther out is not asked for
UNITS, TILTS, TURNS, CURLS = 2.0, 1.0, 0.15, 0.5  # what errors count


@dataclass(frozen=True)
class PlacesData:
    """rooms: the folder of stage ``room_views``; bodies: which to learn; batch: cuts of each to a
    step; wrong: units by which guesses are off, times the exponential of a normal spread."""

    rooms: Path
    bodies: tuple = BODIES
    batch: int = 64
    wrong: float = 0.15


class PlacesStep:
    """Some cuts of things and of the hand, by guesses that are off: how far what is told is off."""

    def __init__(self, model: Places, data: PlacesData) -> None:
        unknown = [body for body in data.bodies if body not in BODIES]
        if unknown or not data.bodies:
            raise UserError(f"places: bodies is {data.bodies!r}; choose from {', '.join(BODIES)}")
        self.model, self.data = model, data
        rooms = Rooms.read(data.rooms)
        self.pictures = rooms.pictures
        self.curls = torch.from_numpy(rooms.hands[:, FRAME])
        every = np.arange(len(rooms.pictures))
        frames = {
            "thing": (rooms.things[:, 0].astype(int), rooms.things[:, 2:]),
            "hand": (every, rooms.hands[:, :FRAME]),
        }
        rows, columns = self.pictures.shape[1:3]
        self.frames, self.shown, self.rows = {}, {}, {}
        for body in data.bodies:
            self.shown[body], told = frames[body]
            self.frames[body] = torch.from_numpy(np.ascontiguousarray(told))
            inside = (told[:, :2] > -BEYOND) & (told[:, :2] < np.array([columns, rows]) + BEYOND)
            self.rows[body] = np.flatnonzero(inside.all(1))
            if not len(self.rows[body]):
                raise UserError(f"places: no picture in {data.rooms} shows a {body}; make more")

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, told = torch.zeros(()), {}
        for body in self.data.bodies:
            rows = rng.choice(self.rows[body], self.data.batch)
            shown = self.shown[body][rows]
            pictures = torch.from_numpy(self.pictures[shown]).permute(0, 3, 1, 2).float() / 255
            loss, off = place_loss(
                getattr(self.model, body), pictures, self.frames[body][rows], noise,
                self.curls[shown] if body == "hand" else None, self.data.wrong,
            )  # fmt: skip
            total = total + loss
            told |= {f"{body}_{name}": value for name, value in off.items()}
        return total, told


def place_loss(
    net: PlaceNet,
    pictures: Tensor,
    frames: Tensor,
    noise: torch.Generator,
    curl: Tensor | None = None,
    wrong: float = 0.15,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a body's place, slopes, tilt, turn and curl are off, told of guesses; and how far the
    place was off before, and is (units)."""
    true = apart(frames)
    guess = guessed(true, noise, wrong)
    cuts, where = cut_by(guess, pictures, net.reach)
    told, harmonics, curled = in_picture(net(_lit(cuts, noise), where), guess)
    unit = guess.unit[:, None]
    at = ((told.at - true.at) / unit).abs().mean()
    slopes = ((told.slopes - true.slopes).flatten(1) / unit).abs().mean()
    tilt = (told.tilt - true.tilt).abs().mean()
    turn = (harmonics - harmonics_of(true.turn)).square().mean()
    loss = UNITS * (at + slopes) + TILTS * tilt + TURNS * turn
    if curl is not None:
        loss = loss + CURLS * (curled - curl).abs().mean()
    before = ((guess.at - true.at) / unit).abs().mean()
    return loss, {"at": at.detach(), "before": before, "turn": turn.detach()}


def guessed(true: Seen, noise: torch.Generator, wrong: float = 0.15) -> Seen:
    """Guesses that are off, by ``wrong`` units, some by a little and some by much."""
    count = len(true.at)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=noise)

    off = wrong * torch.exp(SPREAD * normal(count))
    larger = torch.exp(UNIT_WRONG * off * normal(count))
    leaning = LEAN_WRONG * off * normal(count)
    c, s = leaning.cos(), leaning.sin()
    turned = torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))
    at = true.at + normal(count, 2) * (off * true.unit)[:, None]
    return Seen(at, larger[:, None, None] * (turned @ true.slopes), true.tilt, true.turn)


def _lit(cuts: Tensor, noise: torch.Generator) -> Tensor:
    """Cuts in another light."""
    one = (len(cuts), 1, 1, 1)
    tint = torch.randn(len(cuts), 3, 1, 1, generator=noise) * torch.rand(one, generator=noise)
    darker = torch.exp(LIGHT * torch.randn(one, generator=noise))
    colors, there = cuts.split([3, 1], 1)
    colors = ((colors + 0.5 * there) * torch.exp(LIGHT * tint)).clamp(1e-4, 1) ** darker
    return torch.cat([(colors - 0.5) * there, there], 1)


def train_places(settings: TrainSettings, data: PlacesData, start: Path | None = None) -> Path:
    """Run the stage; the checkpoint is a :class:`Places`. start: weights to begin from; they may be
    of networks that are not told where a cut is."""
    torch.manual_seed(settings.seed)
    model = Places()
    if start is not None:
        weights = read_safetensors(start)
        for name, tensor in model.state_dict().items():
            known = weights.get(name)
            if known is not None and known.dim() == 2 and known.shape[1] == tensor.shape[1] - WHERE:
                weights[name] = F.pad(known, (0, WHERE))
        fill(model, weights, start)
    model = model.to(memory_format=torch.channels_last)
    return Trainer(model, settings, PlacesStep(model, data), data={"data": data.__dict__}).run()
