# SPDX-License-Identifier: Apache-2.0
"""Crossed edits: one thing in several states over one motion, and the edits between any two.

Rendering is what a pair costs. A source and six edited films of it are six pairs; but the film with
a blue mug is as good a source as the film with the red ball, and seven films so make up to
thirty-one. (Fewer, where a round thing stands for one that is turned: from it nobody could tell the
turn of a third.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from egoedit_ros.data.sim.phrasing import phrase
from egoedit_ros.data.sim.scene import Edit, Scene, Thing, color_for, draw_pair, seen_turn
from egoedit_ros.data.sim.vocabulary import COLORS, EVALUATION_SEED, HELD_OUT_PAIRS, instruction

REPLACED, RECOLOURED = 3, 2  # films of either kind, besides the one without the thing
PHRASED = 0.7  # share of instructions that are put together from parts


def draw_states(rng: np.random.Generator, scene: Scene) -> tuple[int, list[Thing]]:
    """A thing of the scene, and what is to stand in its place: other colours, other kinds,
    nothing. Kinds that the scene has already are left out, so every thing can be named."""
    index = 0 if rng.random() < 0.75 else int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    evaluation = scene.seed >= EVALUATION_SEED
    states, kinds, colors = [], {t.kind for t in scene.things}, {thing.color}
    while len(states) < RECOLOURED:
        color = color_for(rng, thing.kind, evaluation)
        if color not in colors:
            colors.add(color)
            states.append(replace(thing, color=color, rgb=COLORS[color], gloss=0.3))
    for _ in range(REPLACED):
        kind, color = draw_pair(rng, evaluation, kinds)
        if rng.random() < 0.3 and (kind, thing.color) not in HELD_OUT_PAIRS:
            color = thing.color  # so that an instruction can leave it unsaid
        kinds.add(kind)
        states.append(replace(thing, kind=kind, color=color, rgb=COLORS[color], gloss=0.3))
    return index, [*states, replace(thing, visible=False)]


def word(rng: np.random.Generator, before: Thing, after: Thing) -> tuple[str, str]:
    """Task and instruction that lead from one state to another."""
    if not after.visible:
        task, kind, color = "remove", None, None
    elif after.kind == before.kind:
        task, kind, color = "recolour", None, after.color
    else:
        task, kind, color = "replace", after.kind, after.color
        if color == before.color and rng.random() < 0.8:
            color = None
    say = phrase if rng.random() < PHRASED else instruction
    return task, say(rng, task, before.kind, before.color, kind, color)


def _can_be_known(before: Thing, after: Thing) -> bool:
    """Whether what is there shows how what is to come is turned."""
    told = seen_turn(before.kind, before.yaw)
    off = seen_turn(after.kind, told) - seen_turn(after.kind, after.yaw)
    return not after.visible or abs(off) < 1e-6


def draw_crossed(scene: Scene) -> tuple[list[Edit], list[tuple[int, int]], list[tuple[str, str]]]:
    """Edits of the scene, which make its films; pairs (from, to) of films, 0 the source and n + 1
    edit n's; and each pair's task and instruction. The first pairs are the edits themselves."""
    rng = np.random.default_rng([scene.seed, 5])
    index, states = draw_states(rng, scene)
    films = [scene.things[index], *states]
    pairs = [
        (a, b)
        for a, before in enumerate(films)
        for b, after in enumerate(films)
        if b and a != b and before.visible and _can_be_known(before, after)
    ]
    told = [word(rng, films[a], films[b]) for a, b in pairs]
    edits = [
        Edit(task, text, index, state) for (task, text), state in zip(told, states, strict=False)
    ]
    return edits, pairs, told
