# SPDX-License-Identifier: Apache-2.0
"""What the detail network answers (:mod:`egoedit_ros.model.detail`), and what is taken of it.

For each pixel it weighs several answers as a mixture of Laplace distributions. Of an outline that
could run here or there the mean of all answers is a blur; the answer that is nearest to most of the
others is one side or the other. So edges stay edges (:func:`choose`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from egoedit_ros.model.light import Paint
from egoedit_ros.model.places import AWAY
from egoedit_ros.model.pose import FRAME, POSE

BODIES = 2  # answers of forms: the thing's, the hand's
NEAR = 1.2  # summed over the colours: answers farther apart than that are as good as unlike
RESOLVE = 14.0
SURELY = 0.5  # how much a thing's outline is heeded whose place is kept


@dataclass(slots=True)
class Outlines:
    """seen: of the forms, at half the size ``[N, SEEN, H/2, W/2]``; thing, hand: how much what is
    shown is to heed their outlines, 0..1; thing_closely, hand_closely: what is seen of each ``[N,
    TOLD, H, W]``, the thing's where its outline is heeded, the hand's where any is; paint: what the
    thing is painted with, where that is known."""

    seen: Tensor
    thing: float
    hand: float
    thing_closely: Tensor | None = None
    hand_closely: Tensor | None = None
    paint: Paint | None = None


@dataclass(frozen=True, slots=True)
class Before:
    """What a chunk tells the next one of a stream. thing, hand: where each was in all that the
    camera saw, the last time that was sure ``[1, FRAME]``; light: that fell ``[1, LIGHT]``."""

    thing: Tensor | None = None
    hand: Tensor | None = None
    light: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """What squares are cut from. pictures: all that the camera sees ``[N, 3, H, W]`` in 0..1; row,
    column: where the squares begin there, in pixels; before: what the chunk before told."""

    pictures: Tensor
    row: int
    column: int
    before: Before

    @property
    def corner(self) -> Tensor:
        """What poses in such pictures are beyond those in squares ``[1, POSE]``."""
        corner = torch.zeros(1, POSE, device=self.pictures.device)
        corner[:, [0, FRAME]], corner[:, [1, FRAME + 1]] = float(self.column), float(self.row)
        return corner


@dataclass(slots=True)
class Answers:
    """A mixture to each pixel. colors: ``[N, K, 3, H, W]`` in 0..1, the camera's first, then the
    decoder's, at last, where forms are known, the thing's and the hand's; logits: ``[N, K, H, W]``;
    widths: of the distributions ``[N, K, H, W]``.

    pose: where the network takes the thing and the hand to be (:mod:`egoedit_ros.model.pose`),
    ``[N, POSE]``; kinds: of what form it takes the thing to be, and last that there is none: logits
    ``[N, forms + 1]``. Both None where it knows no forms. outlines: where one text of all pictures
    puts something else in a thing's place or takes it away."""

    colors: Tensor
    logits: Tensor
    widths: Tensor
    pose: Tensor | None = None
    kinds: Tensor | None = None
    outlines: Outlines | None = None


def told_next(answers: Answers, whole: Whole) -> Before:
    """What a chunk's answers tell the next one, beside what was known before."""
    before, known = whole.before, answers.outlines
    if known is None:
        return before
    thing, hand = (answers.pose[-1:] + whole.corner)[:, : 2 * FRAME].split(FRAME, 1)
    return Before(
        thing if known.thing > SURELY else before.thing,
        hand if max(known.thing, known.hand) > SURELY and hand[0, 0] > AWAY / 2 else before.hand,
        before.light if known.paint is None else known.paint.light,
    )


def surprise(answers: Answers, target: Tensor) -> Tensor:
    """Negative log likelihood of ``target`` ``[N, 3, H, W]``: ``[N, H, W]``, nats a pixel."""
    off = (answers.colors - target[:, None]).abs().sum(2)
    inside = -off / answers.widths - 3 * (2 * answers.widths).log()
    return -torch.logsumexp(answers.logits.log_softmax(1) + inside, 1)


@dataclass(frozen=True, slots=True)
class Trust:
    """Nats by which answers are believed more than the network says: the camera's, the decoder's,
    what the forms have of the thing and of the hand."""

    camera: float
    decoder: float
    thing: float
    hand: float


# A rest of the old thing that is kept in the new one's place is seen more than a soft edge. Fingers
# that come to be seen are a haze, if the hand's form is not believed; the thing's place and turn
# are taken for known in training.
USUAL = Trust(camera=-1.5, decoder=0.75, thing=-1.0, hand=1.0)


Apart = dict[tuple[int, int], Tensor]  # how unlike each two answers are ``[N, H, W]``, 0..1


def apart(colors: Tensor, known: Apart | None = None, changed: tuple[int, ...] = ()) -> Apart:
    """Of colours ``[N, K, 3, H, W]``. known: of the same, but for those of answers ``changed``."""
    pairs = itertools.combinations(range(colors.shape[1]), 2)
    return {
        (a, b): known[a, b]
        if known is not None and a not in changed and b not in changed
        else (colors[:, a] - colors[:, b]).abs().sum(1).div(NEAR).clamp(max=1)
        for a, b in pairs
    }


def choose(
    answers: Answers,
    trust: Trust = USUAL,
    more: Tensor | None = None,
    known: Apart | None = None,
) -> Tensor:
    """The share of each answer in what is shown ``[N, K, H, W]``.

    more: likewise nats, ``[N, K, H, W]``; known: of :func:`apart`. An answer's cost is how far it
    is expected to be from the truth, where far is far; of the likely ones what costs least is
    shown, and almost alone: the softness left is an edge's own over a pixel.
    """
    logits = answers.logits.clone()
    logits[:, 0] += trust.camera
    logits[:, 1] += trust.decoder
    if answers.pose is not None:
        logits[:, -BODIES] += trust.thing
        logits[:, 1 - BODIES] += trust.hand
    told = (logits if more is None else logits + more).log_softmax(1)
    weights = told.exp()
    costs = torch.zeros_like(told)
    for (a, b), off in (apart(answers.colors) if known is None else known).items():
        costs[:, a] += weights[:, b] * off
        costs[:, b] += weights[:, a] * off
    return (told - RESOLVE * costs).softmax(1)
