# SPDX-License-Identifier: Apache-2.0
"""Where a body is to a fraction of a pixel: looked at again, put straight by a first guess.

A network that sees a whole square tells where things are to a pixel or two
(:class:`~egoedit_ros.model.detail.DetailNet`). This one sees the camera's picture cut out around
one body, turned upright and at one size, so that it has only to learn by how much the guess is off:
a cascade of regressions, as in DeepIM (arXiv 1804.00175), but without a picture drawn of the guess.

How far a thing is turned about its own upright axis a cut may not say (a ball becomes a book);
where in the camera's view it is says some of it. So a frame (:mod:`egoedit_ros.model.pose`) is
taken apart into what is seen however it is turned, and that angle, which is told as the first
harmonics of its distribution. The likeliest is taken, one for all pictures of a chunk: a mean of
many would be no angle at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.autoencoder import NormedBlock
from egoedit_ros.model.pose import FRAME

SIDE = 64  # pixels of a cut, a side
HARMONICS = (1, 2, 4)  # of the angle: a cube is the same after a quarter turn
TOLD = 2 + 6 + 2 + 2 * len(HARMONICS) + 1  # place, slopes, tilt, harmonics, curl
LEAST, MOST = 8.0, 60.0  # pixels that a unit may be seen as
USUAL = 26.0  # pixels that it is seen as
WHERE = 4
UPRIGHT = 0.75  # of a unit, how much an upright axis is usually seen as
LOOKS = 2  # at a body, each put straight by the one before
BESIDE = 6.0  # units from a thing to a hand that may be in front of it
FOUND, LOST = 0.05, 0.1  # units that its place moves at the last look
AWAY = -1e4  # pixels: where a hand is put that is not found


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame taken apart. at: ``[N, 2]`` in pixels; slopes: ``[N, 2, 3]``, pixels to a unit, of
    the body turned about its z axis until the camera is in its x-z plane; tilt: of the line of
    sight to that axis, its sine and cosine ``[N, 2]``; turn: by how much it was turned ``[N]``,
    radians."""

    at: Tensor
    slopes: Tensor
    tilt: Tensor
    turn: Tensor

    @property
    def unit(self) -> Tensor:
        """Pixels that a unit is seen as ``[N]``."""
        return self.slopes.flatten(1).norm(dim=1) / math.sqrt(2)

    @property
    def lean(self) -> Tensor:
        """How far the z axis is seen to lean to the right ``[N]``, radians."""
        return torch.atan2(self.slopes[:, 0, 2], -self.slopes[:, 1, 2])


def apart(frame: Tensor) -> Seen:
    """A frame ``[N, FRAME]`` as what :class:`Seen` says."""
    line = F.normalize(frame[:, 8:], dim=1)
    turn = torch.atan2(line[:, 1], line[:, 0])
    tilt = torch.stack([line[:, :2].norm(dim=1), line[:, 2]], 1)
    return Seen(frame[:, :2], frame[:, 2:8].unflatten(1, (2, 3)) @ _about_z(turn), tilt, turn)


def together(seen: Seen) -> Tensor:
    """The frame ``[N, FRAME]`` of :func:`apart`."""
    sine, cosine = F.normalize(seen.tilt, dim=1).unbind(1)
    line = torch.stack([sine * seen.turn.cos(), sine * seen.turn.sin(), cosine], 1)
    return torch.cat([seen.at, (seen.slopes @ _about_z(-seen.turn)).flatten(1), line], 1)


def cut(pictures: Tensor, at: Tensor, unit: Tensor, lean: Tensor, reach: float) -> Tensor:
    """Pictures around places, upright: ``[N, 4, SIDE, SIDE]``, colours less a half and 1 where
    there is a picture.

    pictures: ``[N, 3, H, W]`` in 0..1; at, unit, lean: of :class:`Seen`; reach: units from the
    middle to a side.
    """
    along = ((torch.arange(SIDE, device=at.device) + 0.5) / SIDE * 2 - 1) * reach
    down, right = torch.meshgrid(along, along, indexing="ij")
    points = torch.stack([right, down], -1).flatten(0, 1).to(at)
    seen = at[:, None] + (points @ _turned(lean).mT) * unit[:, None, None]
    size = torch.tensor(pictures.shape[:1:-1]).to(at)
    grid = ((seen + 0.5) / size * 2 - 1).unflatten(1, (SIDE, SIDE))
    there = (grid.abs() <= 1).all(-1).float()[:, None]
    cuts = F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")
    return torch.cat([cuts * there - 0.5 * there, there], 1)


def where(at: Tensor, unit: Tensor, lean: Tensor, size: tuple[int, int]) -> Tensor:
    """Where in the camera's view a cut is ``[N, WHERE]``: its middle, from -1 to 1 to the right and
    down; the logarithm of its unit beside the usual one; its lean.

    at, unit, lean: of :class:`Seen`; size: rows and columns of the camera's picture."""
    rows, columns = size
    middle = (at + 0.5) * 2 / at.new_tensor([columns, rows]) - 1
    return torch.cat([middle, (unit / USUAL).log()[:, None], lean[:, None]], 1)


class PlaceNet(nn.Module):
    """Weights only, for one kind of body. reach: units of it that a cut shows to each side."""

    def __init__(self, reach: float, fine: int = 80, deep: int = 112) -> None:
        super().__init__()
        self.reach = reach
        self.inside = nn.Conv2d(4 * 16, fine, 3, padding=1)
        self.fine_blocks = nn.Sequential(*(NormedBlock(fine) for _ in range(3)))
        self.down = nn.Conv2d(4 * fine, deep, 1)
        self.deep_blocks = nn.Sequential(*(NormedBlock(deep) for _ in range(2)))
        self.few = nn.Conv2d(deep, 16, 1)
        self.hidden = nn.Linear(16 * (SIDE // 8) ** 2 + WHERE, 128)
        self.out = nn.Linear(128, TOLD)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, cuts: Tensor, where: Tensor) -> Tensor:
        """Of cuts ``[N, 4, SIDE, SIDE]``, and where they are (:func:`where`), what is told
        ``[N, TOLD]``, float32: the place in units from the middle, slopes in units, as the cut has
        them; tilt; harmonics; curl."""
        x = F.pixel_unshuffle(cuts, 4).to(self.inside.weight)
        x = self.fine_blocks(self.inside(x.contiguous(memory_format=torch.channels_last)))
        x = self.deep_blocks(self.down(F.pixel_unshuffle(F.silu(x), 2)))
        x = F.silu(self.few(F.group_norm(x, 1))).flatten(1)
        x = torch.cat([x, where.to(x)], 1)
        return self.out(F.silu(self.hidden(x))).float()


def cut_by(guess: Seen, pictures: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """What :class:`PlaceNet` takes: pictures cut by a guess, and where that is."""
    unit, lean = guess.unit.clamp(LEAST, MOST), guess.lean
    cuts = cut(pictures, guess.at, unit, lean, reach)
    return cuts, where(guess.at, unit, lean, tuple(pictures.shape[2:]))


def in_picture(told: Tensor, guess: Seen) -> tuple[Seen, Tensor, Tensor]:
    """What :class:`PlaceNet` told of a cut by ``guess``, in pixels; harmonics ``[N, 2 *
    HARMONICS]`` of the turn (which stays the guess's); and the curl ``[N]``."""
    at, slopes, tilt, harmonics, curl = told.split([2, 6, 2, 2 * len(HARMONICS), 1], 1)
    turned, unit = _turned(guess.lean), guess.unit.clamp(LEAST, MOST)
    at = guess.at + unit[:, None] * (turned @ at[..., None])[..., 0]
    slopes = unit[:, None, None] * (turned @ slopes.unflatten(1, (2, 3)))
    return Seen(at, slopes, tilt, guess.turn), harmonics, curl[:, 0]


def harmonics_of(turn: Tensor) -> Tensor:
    """``[N, 2 * HARMONICS]`` of turns ``[N]``: cosine and sine of each."""
    return torch.stack([f(k * turn) for k in HARMONICS for f in (torch.cos, torch.sin)], 1)


def likeliest(harmonics: Tensor) -> Tensor:
    """The likeliest turn of ``[N, 2 * HARMONICS]``, by their mean: radians. They are the Fourier
    coefficients of its density."""
    turns = torch.linspace(-math.pi, math.pi, 181, device=harmonics.device)[:-1]
    return turns[(harmonics_of(turns).to(harmonics) @ harmonics.mean(0)).argmax()]


class Places(nn.Module):
    """Looks again at where a thing and the hand are."""

    def __init__(self) -> None:
        super().__init__()
        self.thing = PlaceNet(2.3)
        self.hand = PlaceNet(3.0)

    @torch.no_grad()
    def forward(
        self,
        pose: Tensor,
        pictures: Tensor,
        thing: bool,
        hand: bool,
        last: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, tuple[float, float]]:
        """Poses ``[N, POSE]`` in ``pictures`` ``[N, 3, H, W]`` in 0..1, all that the camera sees,
        of one chunk, looked at again: the thing's, the hand's; and how sure it is that each is
        there, 0..1: what is found moves little when it is looked at once more. A hand that is not
        found, or far from the thing, is put away. last: where the two were before ``[1, FRAME]``,
        to look from there where it is not sure."""
        pose, sure = pose.clone(), [1.0, 1.0]
        if thing:
            seen, harmonics, _, sure[0] = self._found(
                self.thing, pose[:, :FRAME], pictures, last[0]
            )
            turn = likeliest(harmonics).expand(len(pose))
            pose[:, :FRAME] = together(Seen(seen.at, seen.slopes, seen.tilt, turn))
        if hand:
            guess = pose[:, FRAME : 2 * FRAME]
            if thing and not _near(apart(guess), seen):
                sure[1] = 0.0
            else:
                seen, harmonics, curl, sure[1] = self._found(self.hand, guess, pictures, last[1])
                turn = torch.atan2(harmonics[:, 1], harmonics[:, 0])
                frame = together(Seen(seen.at, seen.slopes, seen.tilt, turn))
                pose[:, FRAME:] = torch.cat([frame, curl[:, None]], 1)
            if not sure[1]:
                pose[:, FRAME : FRAME + 2] = AWAY
        return pose, tuple(sure)

    def _found(
        self, net: PlaceNet, guess: Tensor, pictures: Tensor, last: Tensor | None
    ) -> tuple[Seen, Tensor, Tensor, float]:
        """A body looked at from guessed frames ``[N, FRAME]``, or from ``last`` where it is surer
        then; harmonics of its turn, its curl, and how sure it is."""
        *told, moved = self._find(net, guess, pictures)
        if last is not None and moved > FOUND:
            *others, less = self._find(net, last.expand(len(guess), -1), pictures)
            if less < moved:
                told, moved = others, less
        return *told, min(max((LOST - moved) / (LOST - FOUND), 0.0), 1.0)

    def _find(self, net: PlaceNet, guess: Tensor, pictures: Tensor) -> tuple:
        """A body looked at from guessed frames; harmonics, curl, and by how many units it moved at
        the last look."""
        seen = apart(guess)
        for _ in range(LOOKS):
            before, unit = seen.at, seen.unit
            if net is self.thing:
                # Of one whose turn is not known the axes across are a mean, and too short.
                unit = torch.maximum(unit, seen.slopes[:, :, 2].norm(dim=1) / UPRIGHT)
            seen, harmonics, curl = self._look(net, seen, unit, pictures)
        moved = (seen.at - before).norm(dim=1) / seen.unit.clamp(min=LEAST)
        return seen, harmonics, curl, moved.mean().item()

    @staticmethod
    def _look(net: PlaceNet, guess: Seen, unit: Tensor, pictures: Tensor) -> tuple:
        unit = unit.clamp(LEAST, MOST)
        slopes = guess.slopes * (unit / guess.unit.clamp(min=1e-3))[:, None, None]
        guess = Seen(guess.at, slopes, guess.tilt, guess.turn)
        return in_picture(net(*cut_by(guess, pictures, net.reach)), guess)


def _near(hand: Seen, thing: Seen) -> bool:
    """Whether a hand may be in front of a thing, in any picture."""
    far = (hand.at - thing.at).norm(dim=1) / torch.maximum(hand.unit, thing.unit)
    return bool(far.min() < BESIDE)


def _about_z(angle: Tensor) -> Tensor:
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [c, -s, o, s, c, o, o, o, torch.ones_like(angle)]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _turned(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))
