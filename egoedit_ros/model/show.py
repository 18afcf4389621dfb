# SPDX-License-Identifier: Apache-2.0
"""What is shown of the detail network's answers, where it knows forms by heart: whole outlines.

Pixel by pixel the likeliest answer makes a lump of a cactus whose arms could be here or a pixel
farther, and a haze of fingers. But their form is known and so, nearly, is the place. So where
something else comes into a thing's place, or a thing is taken from a hand, the body is laid over
what is shown else, as far as its outline reaches and nothing is in front of it; and outside of it
colours that are like the body's are less likely. The outline may be off by a fraction of a pixel,
but it is one. Its light is that of what the answers themselves show (:func:`relit_again`). Where
only what is coloured changes the camera has the outlines already.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.model.detail import BODIES, Answers, apart, choose
from egoedit_ros.model.forms import hand_relit_again, inside, relit_again

# Nats by which colours like a body's are less likely outside of its outline, and a hand's, which
# the camera shows in part, likelier inside.
NOT_THING, NOT_HAND, HAND = 4.0, 1.5, 2.5
LIKE_THING, LIKE_HAND = 0.4, 0.25  # of colours, summed: so far off is alike by a factor e less
# Nats by which it is less likely than the network says that what the camera has in a body's outline
# is in front of it: a hand, anything else. The network hardly tells what is in front from what is
# behind the corner of something larger.
FRONT_HAND, FRONT = 1.5, 5.0
SOME, CLEAR = 0.4, 12.0  # from where on something is in front, and how steep that is
FINGER = 5  # pixels a side: a hand's outline may be off by two
# A body's light is as what is shown, seen from afar: over so many pixels a side; colours that are
# farther off are of something else.
THING_AROUND, HAND_AROUND, OTHER = 9, 7, 0.5
# If it does not come to the same with outlines as without, they are in a wrong place or badly
# turned: summed over the colours, of means over so many pixels a side.
ALIKE, UNLIKE, AROUND = 0.2, 0.4, 9


def show(answers: Answers) -> tuple[Tensor, Tensor]:
    """Colours ``[N, K, 3, H, W]`` and the share of each in what is shown ``[N, K, H, W]``; the
    camera's are the first."""
    known = answers.outlines
    if known is None or not max(known.thing, known.hand):
        return answers.colors, choose(answers)
    unlike = apart(answers.colors)
    usual = choose(answers, known=unlike)
    thing = known.thing > 0
    body, share = (-BODIES, known.thing) if thing else (1 - BODIES, known.hand)
    colors = answers.colors.clone()
    colors[:, body] = _relit(answers, usual, thing)
    answers = dataclasses.replace(answers, colors=colors)
    unlike = apart(colors, unlike, colors.shape[1] + body)
    of_thing, of_hand = inside(known.seen).split(1, 1)
    more = _not_thing(answers, of_thing) if thing else _hand(answers, of_hand)
    outlined = choose(answers, more=share * more, known=unlike)
    same = _alike_from_afar(outlined - usual, colors)
    around = usual + same * (outlined - usual)
    clear = 1 - _front(answers, of_hand if thing else None)
    within = of_thing if thing else of_hand
    shown = (around[:, :, None] * colors).sum(1)
    colors[:, body] = _as_from_afar(
        colors[:, body], shown, within * clear if thing else within,
        THING_AROUND if thing else HAND_AROUND,
    )  # fmt: skip
    alone = torch.zeros_like(around)
    alone[:, body] = 1
    laid = share * within * clear
    laid = laid * _alike_from_afar(laid * (alone - around), colors)
    return colors, around + laid * (alone - around)


def _relit(answers: Answers, shares: Tensor, thing: bool) -> Tensor:
    """A body's colours by what is shown without its outline."""
    known, camera = answers.outlines, shares[:, :1]
    shown = (shares[:, :, None] * answers.colors).sum(1)
    if thing:
        return relit_again(known.seen, shown, 1 - camera, known.usual)
    return hand_relit_again(known.seen, shown, camera)


def _not_thing(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``."""
    return -NOT_THING * _alike(answers, -BODIES, LIKE_THING) * (1 - within)


def _hand(answers: Answers, within: Tensor) -> Tensor:
    """Nats ``[N, K, H, W]``. Where the camera sees a hand, there is one."""
    alike = _alike(answers, 1 - BODIES, LIKE_HAND)
    more = alike * (HAND * within - NOT_HAND * (1 - within))
    more[:, :1] = alike[:, :1] * HAND * within
    return more


def _alike(answers: Answers, body: int, far: float) -> Tensor:
    """How alike answers are to that of a body ``[N, K, H, W]``, 0..1."""
    off = answers.colors - answers.colors[:, body, None]
    return torch.exp(-off.abs().sum(2) / far)


def _front(answers: Answers, hand: Tensor | None) -> Tensor:
    """How surely the camera's picture is in front of a body ``[N, 1, H, W]``. hand: within its
    outline, where it is not the body."""
    less = FRONT_HAND
    if hand is not None:
        near = F.max_pool2d(hand, FINGER, 1, FINGER // 2)
        less = FRONT + (FRONT_HAND - FRONT) * near[:, 0]
    logits = answers.logits.clone()
    logits[:, 0] -= less
    return torch.sigmoid(CLEAR * (logits.softmax(1)[:, :1] - SOME))


def _as_from_afar(color: Tensor, shown: Tensor, where: Tensor, around: int) -> Tensor:
    """A body's colours ``[N, 3, H, W]`` that seen from afar are those that are shown, where that is
    of the body."""
    off = shown - color
    weight = where * torch.exp(-off.abs().sum(1, keepdim=True) / OTHER)
    return (color + _mean(weight * off, around) / (_mean(weight, around) + 0.05)).clamp(0, 1)


def _alike_from_afar(change: Tensor, colors: Tensor) -> Tensor:
    """Where a change of shares comes to the same ``[N, 1, H, W]``, 0..1."""
    off = _mean((change[:, :, None] * colors).sum(1), AROUND).abs().sum(1, keepdim=True)
    return _mean(((UNLIKE - off) / (UNLIKE - ALIKE)).clamp(0, 1), AROUND // 2 + 1)


def _mean(x: Tensor, size: int) -> Tensor:
    """Over squares of so many pixels a side, an odd number."""
    x = F.pad(x, [size // 2] * 4, mode="replicate")
    for axis in (2, 3):  # faster than pooling
        length = x.shape[axis] - size + 1
        x = sum(x.narrow(axis, begin, length) for begin in range(size)) / size
    return x
