# SPDX-License-Identifier: Apache-2.0
"""What is shown of the detail network's answers, where it knows forms by heart: whole outlines.

Pixel by pixel the likeliest answer makes a lump of a cactus whose arms could be here or a pixel
farther, and a haze of fingers. But their form is known and so, nearly, is the place. So where
something else comes into a thing's place, or a thing is taken from a hand, colours that are like
the body's are likelier inside of its outline and less likely outside of it: the outline may be off
by a pixel, but it is one. Whose colours these are the answers themselves have said
(:func:`relit_again`), and where only what is coloured changes the camera has the outlines already.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.model.detail import BODIES, USUAL, Answers, Trust, apart, choose
from egoedit_ros.model.forms import inside, relit_again

# Nats by which colours like a body's are likelier inside of its outline, and less likely outside.
THING, NOT_THING = 6.0, 2.5
HAND, NOT_HAND = 2.5, 1.5
LIKE_THING, LIKE_HAND = 0.4, 0.25  # of colours, summed: so far off is alike by a factor e less
# Seen from afar it comes to the same with outlines as without, or they are in a wrong place or
# badly turned: summed over the colours, of means over so many pixels a side.
ALIKE, UNLIKE, AROUND = 0.12, 0.24, 9
# What is believed where something comes into a thing's place, and where a thing is taken away.
PLACED = Trust(camera=-2.5, decoder=0.5, thing=-0.25, hand=1.0)
GONE = Trust(camera=-1.5, decoder=0.75, thing=-1.0, hand=1.0)


def show(answers: Answers) -> tuple[Tensor, Tensor]:
    """Colours ``[N, K, 3, H, W]`` and the share of each in what is shown ``[N, K, H, W]``; the
    camera's are the first."""
    known = answers.outlines
    if known is None or not max(known.thing, known.hand):
        return answers.colors, choose(answers)
    within = inside(known.seen)
    unlike = apart(answers.colors)
    usual = choose(answers, known=unlike)
    if known.thing:
        answers = dataclasses.replace(answers, colors=_with_thing(answers, usual))
        unlike = apart(answers.colors, unlike, answers.colors.shape[1] - BODIES)
        trust, more = USUAL.towards(PLACED, known.thing), known.thing * _thing(answers, within)
    else:
        trust, more = USUAL.towards(GONE, known.hand), known.hand * _hand(answers, within)
    outlined = choose(answers, trust, more, unlike)
    off = ((outlined - usual)[:, :, None] * answers.colors).sum(1)
    off = _mean(off, AROUND).abs().sum(1, keepdim=True)
    heeded = _mean(((UNLIKE - off) / (UNLIKE - ALIKE)).clamp(0, 1), AROUND // 2 + 1)
    return answers.colors, usual + heeded * (outlined - usual)


def _mean(x: Tensor, size: int) -> Tensor:
    """Over squares of so many pixels a side, an odd number."""
    x = F.pad(x, [size // 2] * 4, mode="replicate")
    for axis in (2, 3):  # faster than pooling
        length = x.shape[axis] - size + 1
        x = sum(x.narrow(axis, begin, length) for begin in range(size)) / size
    return x


def _with_thing(answers: Answers, shares: Tensor) -> Tensor:
    """The answers' colours, the thing's those of what is shown without its outline."""
    colors = answers.colors.clone()
    shown = (shares[:, :, None] * colors).sum(1)
    colors[:, -BODIES] = relit_again(answers.outlines.seen, shown, 1 - shares[:, :1])
    return colors


def _thing(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``. Where a finger may be in front of the thing nothing is said."""
    thing, hand = within.split(1, 1)
    return _alike(answers, -BODIES, LIKE_THING) * (
        THING * thing * (1 - hand) - NOT_THING * (1 - thing)
    )


def _hand(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``. Where the camera sees a hand, there is one."""
    hand = within[:, 1:]
    alike = _alike(answers, 1 - BODIES, LIKE_HAND)
    more = alike * (HAND * hand - NOT_HAND * (1 - hand))
    more[:, :1] = alike[:, :1] * HAND * hand
    return more


def _alike(answers: Answers, body: int, far: float) -> Tensor:
    """How alike answers are to that of a body ``[N, K, H, W]``, 0..1."""
    off = answers.colors - answers.colors[:, body, None]
    return torch.exp(-off.abs().sum(2) / far)
