# SPDX-License-Identifier: Apache-2.0
"""Stage ``places``: learn to tell where things and the hand are from cuts that are put straight by
a guess (:mod:`egoedit_ros.model.places`). The pictures are those of ``detail_samples``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.places import PlaceNet, Places, Seen, apart, cut, harmonics_of, in_picture
from egoedit_ros.model.pose import FRAME
from egoedit_ros.train.loop import Trainer, TrainSettings

BODIES = ("thing", "hand")
WRONG, SPREAD = 0.15, 0.7  # guesses are off by units, times the exponential of a normal spread
UNIT_WRONG, LEAN_WRONG = 0.7, 0.5  # of that: log of the unit, radians
LIGHT = 0.15  # how much pictures are lighter, darker, of another tint: logs
BEYOND = 2  # pixels beyond a picture's sides; a body farther out is not asked for
UNITS, TILTS, TURNS, CURLS = 2.0, 1.0, 0.15, 0.5  # what errors count


@dataclass(frozen=True)
class PlacesData:
    """samples: the folder of stage ``detail_samples``; bodies: which to learn; batch: cuts of each
    to a step."""

    samples: Path
    bodies: tuple = BODIES
    batch: int = 64


class Pictures:
    """The camera's pictures of a folder of samples, each once: uint8 ``[M, S, S, 3]``, and poses
    float32 ``[M, POSE]``."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise UserError(f"no samples in {folder}; run the stage detail_samples first")
        pictures, poses = [], []
        for path in paths:
            with safe_open(path, "np") as file:
                if "pose" not in file.keys():  # noqa: SIM118 (not a table)
                    raise UserError(f"{path} is without poses; remove it and run detail_samples")
                films, told = file.get_tensor("source"), file.get_tensor("pose")
            pairs = enumerate(zip(films, told, strict=True))
            known = {(film[::3, ::3].tobytes(), pose.tobytes()): i for i, (film, pose) in pairs}
            pictures += [films[i] for i in known.values()]
            poses += [told[i] for i in known.values()]
        self.pictures, self.poses = np.stack(pictures), torch.from_numpy(np.stack(poses))


class PlacesStep:
    """Some cuts of things and of the hand, by guesses that are off: how far what is told is off."""

    def __init__(self, model: Places, data: PlacesData) -> None:
        unknown = [body for body in data.bodies if body not in BODIES]
        if unknown or not data.bodies:
            raise UserError(f"places: bodies is {data.bodies!r}; choose from {', '.join(BODIES)}")
        self.model, self.data = model, data
        self.known = Pictures(data.samples)
        side = self.known.pictures.shape[1]
        self.frames, self.rows = {}, {}
        for body in data.bodies:
            begin = FRAME * BODIES.index(body)
            frames = self.known.poses[:, begin : begin + FRAME]
            at = frames[:, :2]
            inside = ((at > -BEYOND) & (at < side + BEYOND)).all(1)
            self.frames[body], self.rows[body] = frames, inside.nonzero()[:, 0].numpy()
            if not len(self.rows[body]):
                raise UserError(f"places: no sample in {data.samples} shows a {body}; make more")

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, told = torch.zeros(()), {}
        for body in self.data.bodies:
            rows = rng.choice(self.rows[body], self.data.batch)
            pictures = torch.from_numpy(self.known.pictures[rows]).permute(0, 3, 1, 2).float() / 255
            pictures = _lit(pictures, noise)
            loss, off = place_loss(
                getattr(self.model, body), pictures, self.frames[body][rows], noise,
                self.known.poses[rows, -1] if body == "hand" else None,
            )  # fmt: skip
            total = total + loss
            told |= {f"{body}_{name}": value for name, value in off.items()}
        return total, told


def place_loss(
    net: PlaceNet, pictures: Tensor, frames: Tensor, noise: torch.Generator, curl: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a body's place, slopes, tilt, turn and curl are off, told of guesses; and how far the
    place was off before, and is (units)."""
    true = apart(frames)
    guess = guessed(true, noise)
    said = net(cut(pictures, guess.at, guess.unit, guess.lean, net.reach))
    told, harmonics, curled = in_picture(said, guess)
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


def guessed(true: Seen, noise: torch.Generator) -> Seen:
    """Guesses that are off, some by a little and some by much."""
    count = len(true.at)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=noise)

    wrong = WRONG * torch.exp(SPREAD * normal(count))
    larger = torch.exp(UNIT_WRONG * wrong * normal(count))
    leaning = LEAN_WRONG * wrong * normal(count)
    c, s = leaning.cos(), leaning.sin()
    turned = torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))
    at = true.at + normal(count, 2) * (wrong * true.unit)[:, None]
    return Seen(at, larger[:, None, None] * (turned @ true.slopes), true.tilt, true.turn)


def _lit(pictures: Tensor, noise: torch.Generator) -> Tensor:
    one = (len(pictures), 1, 1, 1)
    tint = torch.randn(len(pictures), 3, 1, 1, generator=noise) * torch.rand(one, generator=noise)
    darker = torch.exp(LIGHT * torch.randn(one, generator=noise))
    return (pictures * torch.exp(LIGHT * tint)).clamp(0, 1) ** darker


def train_places(settings: TrainSettings, data: PlacesData) -> Path:
    """Run the stage; the checkpoint is a :class:`Places`."""
    torch.manual_seed(settings.seed)
    model = Places().to(memory_format=torch.channels_last)
    return Trainer(model, settings, PlacesStep(model, data), data={"data": data.__dict__}).run()
