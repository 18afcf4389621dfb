# SPDX-License-Identifier: Apache-2.0
"""A scene drawn from a seed: objects, surfaces, light, skin, the hand's and the head's motion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from egoedit_ros.data.sim.assets import HALF_HEIGHT, TEXTURES
from egoedit_ros.data.sim.vocabulary import (
    COLORS,
    EVALUATION_SEED,
    HELD_OUT_PAIRS,
    KINDS,
    TASKS,
    instruction,
)

SKIN_TONES = ((0.95, 0.77, 0.65), (0.87, 0.65, 0.50), (0.72, 0.50, 0.36), (0.48, 0.31, 0.22))
UP = np.array([0.0, 0.0, 1.0])
# Grasp point in the forearm's frame: in front of the palm, where an object's centre is held.
GRASP = np.array([0.007, -0.058, 0.505])


@dataclass(frozen=True)
class Thing:
    """One object: where it stands (x, y, yaw), what it is, its paint and how glossy it is.

    effect: '' or what is about it: ``fire``, ``frost``, or a name of :data:`effects.GLOWS`.
    """

    kind: str
    color: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    yaw: float
    gloss: float = 0.3
    visible: bool = True
    effect: str = ""


@dataclass(frozen=True)
class Edit:
    """One instruction, and what is different afterwards.

    index, after: the thing that is changed and what stands there then (-1, None: no thing is);
    more: further changed things; an index beyond the scene's things adds one. background: a name
    of :data:`edits.BACKGROUNDS`, ``canonical``, or '' for the scene's own. look, source_look: of
    the target's and the source's whole picture (:mod:`looks`), '' as rendered.
    """

    task: str
    instruction: str
    index: int
    after: Thing | None
    more: tuple[tuple[int, Thing], ...] = ()
    background: str = ""
    look: str = ""
    source_look: str = ""

    @property
    def changes(self) -> tuple[tuple[int, Thing], ...]:
        """All changed and added things, by index."""
        first = ((self.index, self.after),) if self.after is not None else ()
        return first + self.more


@dataclass(frozen=True)
class Keyframe:
    """The hand at a time: grasp point (m), roll (rad), curl 0..1, and whether it holds."""

    time: float
    grasp: tuple[float, float, float]
    roll: float
    curl: float
    holds: bool


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip. Two scenes that differ in one thing give a perfect pair."""

    seed: int
    things: tuple[Thing, ...]
    held: int  # the thing that the hand works on; -1: none
    keyframes: tuple[Keyframe, ...]
    start: float
    surfaces: dict = field(hash=False, compare=False)
    light: dict = field(hash=False, compare=False)
    skin: tuple[float, float, float]
    sleeve: tuple[float, float, float]
    spread: tuple[float, ...]
    camera: dict = field(hash=False, compare=False)

    def edited(self, edit: Edit) -> Scene:
        """The same scene with ``edit`` done, but for the looks of the picture."""
        things = list(self.things)
        for index, after in edit.changes:
            if index < len(things):
                things[index] = after
            else:
                things.append(after)
        return replace(self, things=tuple(things))


def _paint(rng: np.random.Generator, color: str, vary: float) -> tuple[float, float, float]:
    base = np.array(COLORS[color])
    rgb = base * (1 + vary * rng.uniform(-1, 1)) + vary * 0.25 * rng.uniform(-1, 1, 3)
    return tuple(float(c) for c in np.clip(rgb, 0.02, 1.0))


def seen_turn(kind: str, yaw: float) -> float:
    """The least turn (rad) at which a thing of this kind looks as it does at ``yaw``.

    A ball's is 0, a cube's at most an eighth of a full one. Things are turned by no more than that,
    so whoever sees a thing can know how what takes its place stands."""
    if kind in ("ball", "can", "bottle", "cone"):
        return 0.0
    quarter = np.pi / 2
    return float(yaw - quarter * round(yaw / quarter)) if kind == "cube" else yaw


def draw_pair(rng: np.random.Generator, evaluation: bool, avoid: set[str]) -> tuple[str, str]:
    """An object-colour pair; held-out ones are a quarter of evaluation and none of training."""
    if evaluation and rng.random() < 0.25:
        pairs = [p for p in sorted(HELD_OUT_PAIRS) if p[0] not in avoid]
        return pairs[rng.integers(len(pairs))]
    while True:
        pair = (str(rng.choice(KINDS)), str(rng.choice(list(COLORS))))
        if pair not in HELD_OUT_PAIRS and pair[0] not in avoid:
            return pair


def _keyframes(
    rng: np.random.Generator, thing: Thing | None, seconds: float
) -> tuple[Keyframe, ...]:
    """Reach, grasp, lift, carry, put down, retreat, again and again; or a resting, moving hand."""

    def near(x: float, y: float, z: float, spread: float) -> tuple[float, float, float]:
        offset = rng.uniform(-spread, spread, 3)
        return (x + offset[0], y + offset[1], max(z + offset[2], 0.03))

    roll = float(rng.uniform(0.6, 1.5))
    frames = [Keyframe(0.0, near(0.16, -0.12, 0.10, 0.05), roll, 0.25, False)]
    time = 0.0
    x, y = (thing.x, thing.y) if thing else (0.0, 0.0)
    height = HALF_HEIGHT[thing.kind] if thing else 0.05
    while time < seconds:
        if thing is None:
            time += float(rng.uniform(0.5, 1.2))
            pose = near(0.14, -0.08, 0.12, 0.07)
            frames.append(Keyframe(time, pose, roll, float(rng.uniform(0.1, 0.7)), False))
            continue
        steps = (
            (rng.uniform(0.5, 0.9), (x, y, height), 0.2, False),
            (rng.uniform(0.2, 0.35), (x, y, height), 1.0, False),
            (0.01, (x, y, height), 1.0, True),
            (rng.uniform(0.4, 0.8), near(x * 0.5, y * 0.5 - 0.04, 0.19, 0.05), 1.0, True),
            (rng.uniform(0.5, 1.3), near(0.0, -0.05, 0.17, 0.07), 1.0, True),
            (rng.uniform(0.5, 1.2), near(0.02, -0.03, 0.18, 0.07), 1.0, True),
        )
        x, y = float(rng.uniform(-0.12, 0.10)), float(rng.uniform(-0.10, 0.08))
        steps += (
            (rng.uniform(0.5, 0.9), (x, y, height), 1.0, True),
            (rng.uniform(0.2, 0.3), (x, y, height), 0.25, False),
            (rng.uniform(0.4, 0.7), near(0.18, -0.14, 0.10, 0.04), 0.3, False),
        )
        for duration, grasp, curl, holds in steps:
            time += float(duration)
            frames.append(Keyframe(time, tuple(map(float, grasp)), roll, curl, holds))
    return tuple(frames)


def draw_scene(seed: int, seconds: float = 1.0) -> Scene:
    """The scene of ``seed``; seeds from 1,000,000 up are for evaluation only."""
    rng = np.random.default_rng([seed, 1])
    evaluation = seed >= EVALUATION_SEED
    things: list[Thing] = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2]))):
        kind, color = draw_pair(rng, evaluation, {t.kind for t in things})
        for _ in range(100):
            x, y = float(rng.uniform(-0.14, 0.10)), float(rng.uniform(-0.10, 0.13))
            if all((x - t.x) ** 2 + (y - t.y) ** 2 > 0.12**2 for t in things):
                break
        gloss = float(rng.uniform(0.0, 0.6))
        rgb, yaw = _paint(rng, color, 0.15), seen_turn(kind, float(rng.uniform(-1.0, 1.0)))
        things.append(Thing(kind, color, rgb, x, y, yaw, gloss))
    works = rng.random()
    held = 0 if works < 0.85 else -1
    start = float(rng.uniform(0.0, 6.0))
    keyframes = _keyframes(rng, things[0] if held == 0 else None, start + seconds + 2.0)
    surfaces = {
        name: (
            int(rng.integers(TEXTURES)),
            float(rng.uniform(1.0, 5.0)) * (4.0 if name != "table" else 1.0),
            tuple(np.clip(rng.uniform(0.35, 1.0) * (1 + rng.uniform(-0.25, 0.25, 3)), 0.1, 1)),
        )
        for name in ("table", "floor", "wall")
    }
    azimuth, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.75)
    light = {
        "dir": (np.cos(azimuth) * tilt, np.sin(azimuth) * tilt, -1.0),
        "key": tuple(rng.uniform(0.35, 0.7) * (1 + rng.uniform(-0.08, 0.08, 3))),
        "fill": tuple(rng.uniform(0.0, 0.25) * np.ones(3)),
        "ambient": tuple(rng.uniform(0.2, 0.4) * (1 + rng.uniform(-0.05, 0.05, 3))),
    }
    tone = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))])
    skin = tuple(np.clip(tone * rng.uniform(0.9, 1.1) + rng.uniform(-0.03, 0.03, 3), 0.1, 1))
    camera = {
        "pos": (rng.uniform(-0.06, 0.05), rng.uniform(-0.36, -0.27), rng.uniform(0.30, 0.42)),
        "look": (rng.uniform(-0.05, 0.04), rng.uniform(-0.02, 0.06), rng.uniform(0.04, 0.09)),
        "fovy": rng.uniform(44, 56),
        "roll": rng.uniform(-0.08, 0.08),
        "bob": rng.uniform(0.0, 0.008),
        "step_hz": rng.uniform(1.6, 2.1),
        "sway": rng.uniform(0.0, 0.03),
        "approach": rng.uniform(-0.02, 0.05) if rng.random() < 0.4 else 0.0,
        "phase": rng.uniform(0, 2 * np.pi, 6),
        "rate": rng.uniform(0.15, 0.6, 6),
    }
    return Scene(
        seed=seed,
        things=tuple(things),
        held=held,
        keyframes=keyframes,
        start=start,
        surfaces=surfaces,
        light=light,
        skin=skin,
        sleeve=tuple(rng.uniform(0.1, 0.8, 3)),
        spread=tuple(rng.uniform(-0.1, 0.1, 4)),
        camera=camera,
    )


def draw_edits(scene: Scene, count: int = 3, held_out_wording: bool = False) -> list[Edit]:
    """``count`` edits of the scene, one of each task in turn, from the scene's own seed.

    What an instruction leaves open follows a fixed rule: canonical shade and gloss, same place and
    turn, standing on the same base, and the old colour where none is named.
    """
    rng = np.random.default_rng([scene.seed, 2])
    edits = []
    first = int(rng.integers(len(TASKS))) if count < len(TASKS) else 0
    for number in range(count):
        task = TASKS[(first + number) % len(TASKS)]
        edits.append(draw_object_edit(rng, scene, task, held_out_wording))
    return edits


def draw_object_edit(
    rng: np.random.Generator, scene: Scene, task: str, held_out_wording: bool = False
) -> Edit:
    """One edit of a thing: ``recolour``, ``replace`` or ``remove``, by the rules above."""
    evaluation = scene.seed >= EVALUATION_SEED
    index = 0 if rng.random() < 0.75 else int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    new_kind, new_color, after = None, None, replace(thing, visible=False)
    if task == "recolour":
        while new_color is None or new_color == thing.color:
            new_color = color_for(rng, thing.kind, evaluation)
        after = replace(thing, color=new_color, rgb=COLORS[new_color], gloss=0.3)
    elif task == "replace":
        new_kind, new_color = draw_pair(rng, evaluation, {t.kind for t in scene.things})
        unsaid = (new_kind, thing.color) in HELD_OUT_PAIRS and not evaluation
        if rng.random() < 0.25 and not unsaid:
            new_color = None
        color = new_color or thing.color
        after = replace(thing, kind=new_kind, color=color, rgb=COLORS[color], gloss=0.3)
    text = instruction(rng, task, thing.kind, thing.color, new_kind, new_color, held_out_wording)
    return Edit(task, text, index, after)


def color_for(rng: np.random.Generator, kind: str, evaluation: bool) -> str:
    """A colour for a kind; the held-out one is a quarter of evaluation and none of training."""
    if evaluation and rng.random() < 0.25:
        return next(c for k, c in sorted(HELD_OUT_PAIRS) if k == kind)
    return str(rng.choice([c for c in COLORS if (kind, c) not in HELD_OUT_PAIRS]))


def hand_at(scene: Scene, time: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Forearm position (m), rotation ``[3, 3]`` and finger curl 0..1 at ``time`` (s)."""
    frames = scene.keyframes
    index = max(i for i, k in enumerate(frames) if k.time <= time)
    a, b = frames[index], frames[min(index + 1, len(frames) - 1)]
    u = (time - a.time) / max(b.time - a.time, 1e-6)
    u = float(np.clip(u, 0, 1))
    u = u * u * (3 - 2 * u)
    grasp = (1 - u) * np.array(a.grasp) + u * np.array(b.grasp)
    roll = (1 - u) * a.roll + u * b.roll
    elbow = np.array([0.26 + 0.3 * grasp[0], -0.52, 0.16 + 0.3 * grasp[2]])
    z = grasp - elbow
    z /= np.linalg.norm(z)
    right = np.cross(z, UP)
    back = np.cos(roll) * UP + np.sin(roll) * right
    y = back - z * (back @ z)
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z], axis=1)
    return grasp - rotation @ GRASP, rotation, (1 - u) * a.curl + u * b.curl


def thing_at(scene: Scene, index: int, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Position of the centre (m) and rotation ``[3, 3]`` of a thing at ``time`` (s).

    A held thing follows the grasp point; its kind decides only how far its centre is above its
    base, so a replaced thing stands where the old one stood.
    """
    thing = scene.things[index]
    c, s = np.cos(thing.yaw), np.sin(thing.yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    base = np.array([thing.x, thing.y, 0.0])
    if index == scene.held:
        since = None
        for k in scene.keyframes:
            if k.time > time:
                break
            if k.holds and since is None:
                since = k
            elif not k.holds and since is not None:
                base, since = np.array([k.grasp[0], k.grasp[1], 0.0]), None
        if since is not None:
            position, rotation, _ = hand_at(scene, time)
            _, grasped, _ = hand_at(scene, since.time)
            grasp = position + rotation @ GRASP
            turn = rotation @ grasped.T @ turn
            # Held where it was grasped: the grasp height above the base stays.
            base = grasp - turn @ np.array([0.0, 0.0, since.grasp[2]])
    return base + turn @ np.array([0.0, 0.0, HALF_HEIGHT[thing.kind]]), turn


def camera_at(scene: Scene, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Head camera position (m) and rotation ``[3, 3]`` (MuJoCo: looks along -z) at ``time``."""
    c = scene.camera
    wave = [np.sin(2 * np.pi * r * time + p) for r, p in zip(c["rate"], c["phase"], strict=True)]
    step = 2 * np.pi * c["step_hz"] * time
    bob = np.array([0.5 * np.sin(step / 2), 0.0, np.sin(step)]) * c["bob"]
    since = time - scene.start
    since = since if since < 1 else 2 - np.exp(1 - since)  # a step nearer, then the head stays
    forward = c["approach"] * np.array([0.0, 1.0, -0.7]) * since
    position = np.array(c["pos"]) + bob + c["sway"] * np.array(wave[:3]) + forward
    look = np.array(c["look"]) + 1.2 * c["sway"] * np.array([wave[3], wave[4], 0.0])
    z = position - look
    z /= np.linalg.norm(z)
    up = UP + np.array([c["roll"] + 0.5 * c["sway"] * wave[5], 0, 0])
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    return position, np.stack([x, np.cross(z, x), z], axis=1)
