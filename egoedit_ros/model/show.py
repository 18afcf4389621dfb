# SPDX-License-Identifier: Apache-2.0
"""What is shown of the detail network's answers, where it knows forms by heart: whole outlines.

Pixel by pixel the likeliest answer makes a lump of a cactus whose arms could be here or a pixel
farther, and a haze of fingers. But their form is known and so, nearly, is the place. So where
something else comes into a thing's place, or a thing is taken from a hand, the body is laid over
what is shown else, as far as its outline reaches and nothing is in front of it; and outside of it
colours that are like the body's are less likely, and their haze is taken away
(:mod:`egoedit_ros.model.haze`). The outline may be off by a fraction of a pixel, but it is one. A
thing whose colour is known by name is painted in the light of the room
(:func:`~egoedit_ros.model.light.painted`); else its light, and a hand's, is that of what the
answers themselves show (:func:`~egoedit_ros.model.forms.relit_again`). Where only what is coloured
changes the camera has the outlines already.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.model.answers import BODIES, USUAL, Answers, Outlines, apart, choose
from egoedit_ros.model.forms import (
    SHARP,
    WITHIN,
    hand_relit_again,
    inside,
    relit_again,
)
from egoedit_ros.model.haze import Laid, cleared
from egoedit_ros.model.light import mean_around, most_around, painted

THING, HAND = -BODIES, 1 - BODIES  # whose answers
# Nats by which colours like a body's are less likely outside of its outline, and a hand's, which
# the camera shows in part, likelier inside.
NOT_THING, NOT_HAND, IN_HAND = 4.0, 1.5, 2.5
FEW = 4.0  # pixels of a material that say what colour it has
BRIGHTER = 1.0, 1.3  # than what is painted on average, the same may be
LIKE_THING, LIKE_HAND = 0.4, 0.25  # of colours, summed: so far off is alike by a factor e less
# Nats by which it is less likely than the network says that what the camera has in a body's outline
# is in front of it: a hand, anything else. The network hardly tells what is in front from what is
# behind the corner of something larger.
FRONT_HAND, FRONT = 1.0, 4.0
SOME, CLEAR = 0.4, 12.0  # from where on something is in front, and how steep that is
# Where exactly what is in front ends the camera shows: a pixel is on the side whose colour, a mean
# over so many pixels, is nearer; by a summed colour of 1, so much surer.
SIDES, SIDES_COUNT = 7, 10.0  # pixels at half the size
FEW_OF_SIDE, NONE = 0.05, 1e-3  # of those pixels: few say little
# Summed over the colours: what is so far from most of what is seen is no table. It is likelier in
# front than a table would be.
TABLE, MOSTLY = 0.25, 3  # and how often most is found anew
FINGER = 5  # pixels a side: a hand's outline may be off by two
# A body's light is as what is shown, seen from afar: over so many pixels a side; colours that are
# farther off, summed, are of something else.
AROUND_THING, AROUND_HAND = (9, 0.5), (7, 0.25)
# If it does not come to the same with outlines as without, they are in a wrong place or badly
# turned: from where to where on, summed over the colours, of means over so many pixels a side.
ALIKE, AROUND = (0.2, 0.4), 9
# Likewise where the thing is painted, which is not fitted to what is shown: only what is far off is
# in a wrong place.
PAINTED_ALIKE = 1.0, 1.6
# What share of what is seen of a painted thing is edited: less, and it is in a wrong place.
SOME_EDITED, EDITED = 0.3, 0.6
# Beside it: nats by which the camera is believed more, and pixels around it. What is decoded there
# is a haze of the thing.
BESIDE, NEAR = 0.5, 8
BESIDE_PAINTED = dataclasses.replace(USUAL, decoder=-0.75)


@dataclass(frozen=True, slots=True)
class Shown:
    """colors: ``[N, K, 3, H, W]``; shares: of each in what is shown ``[N, K, H, W]``; the camera's
    are the first. laid: where a body is shown that has its edges ``[N, H, W]``, None: nowhere."""

    colors: Tensor
    shares: Tensor
    laid: Tensor | None = None


def show(answers: Answers) -> Shown:
    """What is to be shown of answers."""
    known = answers.outlines
    if known is None or not max(known.thing, known.hand):
        return Shown(answers.colors, choose(answers))
    thing = known.thing > 0
    is_painted = thing and known.paint is not None
    trust = BESIDE_PAINTED if is_painted else USUAL
    unlike = apart(answers.colors)
    usual = choose(answers, trust, known=unlike)
    share = known.thing if thing else known.hand
    colors = answers.colors.clone()
    colors[:, HAND] = hand_relit_again(
        known.seen, known.hand_closely, _shown(usual, answers.colors), usual[:, :1]
    )
    if thing:
        shown, edited = _shown(usual, answers.colors), 1 - usual[:, :1]
        colors[:, THING] = _thing(known, shown, edited)
    answers = dataclasses.replace(answers, colors=colors)
    bodies = (HAND, THING) if thing else (HAND,)
    unlike = apart(colors, unlike, tuple(colors.shape[1] + of for of in bodies))
    of_thing = inside(known.thing_closely[:, :1]) if thing else None
    of_hand = inside(known.hand_closely[:, :1])
    clear = 1 - _front(answers, of_hand) if thing else None
    if is_painted:
        share = share * _rightly(of_thing * clear, usual)
    more = _not_thing(answers, of_thing) if thing else _hand(answers, of_hand)
    outlined = choose(answers, trust, share * more, unlike)
    gate = PAINTED_ALIKE if is_painted else ALIKE
    same = _alike_from_afar(outlined - usual, colors, gate)
    shares = usual + same * (outlined - usual)
    # What a thing covered of a hand comes to be seen where something smaller takes its place.
    behind = share * (1 - _front(answers, None)) * (1 - of_thing if thing else 1)
    shares = _lay(answers, shares, HAND, of_hand, behind, AROUND_HAND)
    if thing:
        around = None if is_painted else AROUND_THING
        shares = _lay(answers, shares, THING, of_thing, share * clear, around)
    rest = of_hand * (1 - of_thing) if thing else of_hand
    laid = rest[:, 0] * shares[:, HAND]
    if is_painted:
        laid = laid + of_thing[:, 0] * shares[:, THING]
    bodies = [Laid(rest, HAND, share)]
    if thing:
        bodies.append(Laid(of_thing, THING, share))
    return Shown(*cleared(colors, shares, bodies), laid)


def _thing(known: Outlines, shown: Tensor, edited: Tensor) -> Tensor:
    """The thing as it is painted, or with the light of what is shown of it ``[N, 3, H, W]``."""
    fine = known.thing_closely
    if known.paint is None:
        return relit_again(known.seen, fine, shown, edited)
    weight = torch.sigmoid(SHARP * (fine[:, :1] - WITHIN)) * edited
    return painted(fine[:, 2:5], inside(fine[:, 1:2]), shown, weight, known.paint)


def _shown(shares: Tensor, colors: Tensor) -> Tensor:
    return (shares[:, :, None] * colors).sum(1)


def _lay(
    answers: Answers, shares: Tensor, body: int, within: Tensor, clear: Tensor, around: tuple | None
) -> Tensor:
    """Lay a body over what is shown ``[N, K, H, W]``, within its outline and where nothing is in
    front of it. Its colours, which are changed in place, are as what is shown seen from afar."""
    colors, laid = answers.colors, within * clear
    if around is not None:
        colors[:, body] = _as_from_afar(colors[:, body], _shown(shares, colors), laid, around)
    alone = torch.zeros_like(shares)
    alone[:, body] = 1
    gate = PAINTED_ALIKE if around is None else ALIKE
    laid = laid * _alike_from_afar(laid * (alone - shares), colors, gate)
    return shares + laid * (alone - shares)


def _rightly(seen: Tensor, usual: Tensor) -> Tensor:
    """Whether what is seen of a body in a chunk is about where the edit is: 0..1. seen:
    ``[N, 1, H, W]``; usual: shares of what else is shown."""
    share = (seen * (1 - usual[:, :1])).sum() / seen.sum().clamp(min=1)
    return ((share - SOME_EDITED) / (EDITED - SOME_EDITED)).clamp(0, 1)


def _not_thing(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``. Of a painted thing all colours are known, also beside it."""
    known, colors = answers.outlines, answers.colors
    if known.paint is None:
        return -NOT_THING * _alike(answers, THING, LIKE_THING) * (1 - within)
    off = (colors - colors[:, THING, None]).abs().sum(2)
    second = inside(known.thing_closely[:, 1:2])
    for part in (within * (1 - second), within * second):
        count = part.sum((2, 3), keepdim=True)
        if float(count.min()) < FEW:
            continue
        mean = (part * colors[:, THING]).sum((2, 3), keepdim=True) / count
        for brighter in BRIGHTER:
            other = (colors - (brighter * mean[:, None]).clamp(max=1)).abs().sum(2)
            off = torch.minimum(off, other)
    more = -NOT_THING * torch.exp(-off / LIKE_THING) * (1 - within)
    more[:, :1] += BESIDE * most_around(within, NEAR) * (1 - within)
    return more


def _hand(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``. Where the camera sees a hand, there is one."""
    alike = _alike(answers, HAND, LIKE_HAND)
    more = alike * (IN_HAND * within - NOT_HAND * (1 - within))
    more[:, :1] = alike[:, :1] * IN_HAND * within
    return more


def _alike(answers: Answers, body: int, far: float) -> Tensor:
    """How alike answers are to that of a body ``[N, K, H, W]``, 0..1."""
    off = answers.colors - answers.colors[:, body, None]
    return torch.exp(-off.abs().sum(2) / far)


def _front(answers: Answers, hand: Tensor | None) -> Tensor:
    """How surely the camera's picture is in front of a body ``[N, 1, H, W]``. hand: within its
    outline, where it is not the body."""
    camera, less = answers.colors[:, 0], FRONT_HAND
    if hand is not None:
        near = F.max_pool2d(hand, FINGER, 1, FINGER // 2)
        near = torch.maximum(near, _odd(camera, answers.logits.softmax(1)[:, :1]))
        less = FRONT + (FRONT_HAND - FRONT) * near[:, 0]
    logits = answers.logits.clone()
    logits[:, 0] -= less
    surely = CLEAR * (logits.softmax(1)[:, :1] - SOME)
    return torch.sigmoid(surely + SIDES_COUNT * _side(camera, torch.sigmoid(surely)))


def _odd(camera: Tensor, kept: Tensor) -> Tensor:
    """How far the camera's colours ``[N, 3, H, W]`` are unlike most of those that are kept
    ``[N, 1, H, W]``: 0..1."""

    def mean(weight: Tensor) -> Tensor:
        count = weight.sum((2, 3), keepdim=True).clamp(min=1)
        return (weight * camera).sum((2, 3), keepdim=True) / count

    def off(most: Tensor) -> Tensor:
        return (camera - most).abs().sum(1, keepdim=True) / TABLE

    most = mean(kept)
    for _ in range(MOSTLY):
        most = mean(kept * torch.exp(-off(most)))
    return 1 - torch.exp(-off(most).square())


def _side(camera: Tensor, front: Tensor) -> Tensor:
    """By how much the camera's colours are nearer to what is in front ``[N, 1, H, W]`` than to what
    is not, as far as both are near."""
    half = [F.avg_pool2d(x, 2) for x in (camera, front)]
    sums = [mean_around(torch.cat([x * half[0], x], 1), SIDES) for x in (half[1], 1 - half[1])]
    sums = [F.interpolate(x, scale_factor=2, mode="bilinear") for x in sums]
    off = [(camera - x[:, :3] / x[:, 3:].clamp(min=NONE)).abs().sum(1, keepdim=True) for x in sums]
    fewer = torch.minimum(sums[0][:, 3:], sums[1][:, 3:])
    return (off[1] - off[0]) * fewer / (fewer + FEW_OF_SIDE)


def _as_from_afar(color: Tensor, shown: Tensor, where: Tensor, around: tuple) -> Tensor:
    """A body's colours ``[N, 3, H, W]`` that seen from afar are those that are shown, where that is
    of the body."""
    (size, other), off = around, shown - color
    weight = where * torch.exp(-off.abs().sum(1, keepdim=True) / other)
    return (color + mean_around(weight * off, size) / (mean_around(weight, size) + 0.05)).clamp(
        0, 1
    )


def _alike_from_afar(change: Tensor, colors: Tensor, gate: tuple[float, float]) -> Tensor:
    """Where a change of shares comes to the same ``[N, 1, H, W]``, 0..1."""
    alike, unlike = gate
    off = mean_around(_shown(change, colors), AROUND).abs().sum(1, keepdim=True)
    return mean_around(((unlike - off) / (unlike - alike)).clamp(0, 1), AROUND // 2 + 1)
