# SPDX-License-Identifier: Apache-2.0
"""Edits of every task, drawn from the scene's own seed: same seed, same task, same edit.

What an instruction leaves open follows a fixed rule, besides those of :func:`scene.draw_edits`:
an added object stands 11 cm from its neighbour, or on the first free spot; an effect has one size
and one motion, counted from the clip's first frame; a named place has one set of surfaces; a
picture made from a sketch or a depth map has the canonical surfaces, light, skin and sleeve.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from egoedit_ros.data.algorithmic import RECIPES, finish
from egoedit_ros.data.algorithmic import wording as recipe_wording
from egoedit_ros.data.sim import wording as words
from egoedit_ros.data.sim.scene import (
    SKIN_TONES,
    Edit,
    Scene,
    Thing,
    camera_at,
    color_for,
    draw_edits,
    draw_object_edit,
    draw_pair,
    draw_scene,
    hand_at,
    thing_at,
)
from egoedit_ros.data.sim.tasks import ALL_TASKS, FROM_MAP
from egoedit_ros.data.sim.vocabulary import (
    COLORS,
    EVALUATION_SEED,
    HELD_OUT_PAIRS,
    SYNONYMS,
    TASKS,
    name_thing,
    with_article,
)

CANONICAL = "canonical"
# name: how people call it, then (texture, repeat, rgb) of table, floor and wall.
BACKGROUNDS = {
    "meadow": (
        ("a green meadow", "a meadow on a sunny day", "a field of green grass"),
        ((1, 3.0, (0.30, 0.68, 0.22)), (1, 16.0, (0.25, 0.60, 0.20)), (3, 4.0, (0.55, 0.78, 1.0))),
    ),
    "snow": (
        ("a snowy field", "a white winter landscape", "the snow"),
        ((7, 2.0, (1.0, 1.0, 1.0)), (7, 8.0, (0.95, 0.97, 1.0)), (3, 4.0, (0.72, 0.82, 0.95))),
    ),
    "beach": (
        ("a sandy bay by the sea", "a sandy landscape by the blue sea", "a bay of yellow sand"),
        ((5, 4.0, (0.93, 0.80, 0.52)), (5, 16.0, (0.90, 0.76, 0.48)), (1, 8.0, (0.10, 0.48, 0.78))),
    ),
    "study": (
        ("a study with dark wooden furniture",
            "an old library with dark wood",
            "a study full of dark wood",
        ),
        ((0, 1.5, (0.42, 0.23, 0.11)), (4, 6.0, (0.35, 0.20, 0.12)), (4, 4.0, (0.30, 0.16, 0.09))),
    ),
    "kitchen": (
        ("a white tiled kitchen", "a bright kitchen with white tiles", "a clean tiled kitchen"),
        ((2, 2.0, (1.0, 1.0, 0.98)), (6, 8.0, (0.75, 0.75, 0.75)), (2, 6.0, (0.95, 0.97, 1.0))),
    ),
    "cave": (
        ("a dark cave of grey rock", "a rocky cave", "a gloomy cave"),
        ((9, 3.0, (0.30, 0.29, 0.31)), (9, 12.0, (0.22, 0.21, 0.23)), (9, 8.0, (0.18, 0.17, 0.19))),
    ),
}  # fmt: skip
_CANONICAL = (
    (8, 2.0, (0.78, 0.60, 0.42)),
    (3, 8.0, (0.45, 0.45, 0.48)),
    (3, 8.0, (0.85, 0.85, 0.8)),
)
_CANONICAL_LIGHT = {
    "dir": (0.35, 0.25, -1.0),
    "key": (0.55, 0.55, 0.55),
    "fill": (0.12, 0.12, 0.12),
    "ambient": (0.3, 0.3, 0.3),
}
SLEEVE = (0.25, 0.35, 0.62)
BESIDE = {"right": (0.11, 0), "left": (-0.11, 0), "behind": (0, 0.11), "front": (0, -0.11)}
FREE_SPOTS = (
    (-0.12, 0.10),
    (0.08, 0.12),
    (-0.02, 0.12),
    (-0.14, -0.03),
    (0.05, -0.06),
    (-0.05, 0),
    (-0.17, 0.06),
    (-0.05, -0.1),
    (0.12, 0.03),
)
TABLE = ((-0.17, 0.13), (-0.10, 0.17))  # where things can be seen: x and y, from and to (m)
STYLES = tuple(r for r in RECIPES.values() if r.task in ("stylize", "grade"))


def dressed(scene: Scene, background: str) -> Scene:
    """The scene in another place. ``canonical``: also its light, skin, sleeve and paints."""
    if not background:
        return scene
    surfaces = _CANONICAL if background == CANONICAL else BACKGROUNDS[background][1]
    named = dict(zip(("table", "floor", "wall"), surfaces, strict=True))
    if background != CANONICAL:
        return replace(scene, surfaces=named)
    things = tuple(replace(t, rgb=COLORS[t.color], gloss=0.3) for t in scene.things)
    return replace(
        scene,
        surfaces=named,
        light=_CANONICAL_LIGHT,
        skin=SKIN_TONES[1],
        sleeve=SLEEVE,
        things=things,
    )


def draw_task_edit(scene: Scene, task: str, held_out_wording: bool = False) -> Edit:
    """The scene's edit of a task. Raises KeyError for a task that there is not."""
    rng = np.random.default_rng([scene.seed, 3, ALL_TASKS.index(task)])
    edit = _DRAW[task](rng, scene, held_out_wording)
    return replace(edit, task=task, instruction=with_article(edit.instruction))


def draw_task_edits(
    scene: Scene, count: int = 3, tasks: tuple[str, ...] = TASKS, held_out_wording: bool = False
) -> list[Edit]:
    """Up to ``count`` edits of one clip, so that over the seeds all tasks come equally often.

    All of a clip's edits have the same source; one that starts from a map therefore comes alone.
    With :data:`vocabulary.TASKS` this is :func:`scene.draw_edits`.
    """
    if tasks == TASKS:
        return draw_edits(scene, count, held_out_wording)
    maps = [t for t in tasks if t in FROM_MAP]
    rest = [t for t in tasks if t not in FROM_MAP]
    shares = -(-len(rest) // count)
    turn, place = divmod(scene.seed, shares + len(maps))
    if place >= shares:
        chosen = [maps[place - shares]]
    else:
        order = [rest[i] for i in np.random.default_rng([turn, 4]).permutation(len(rest))]
        chosen = order[place * count : (place + 1) * count]
    return [draw_task_edit(scene, task, held_out_wording) for task in chosen]


def _pick(rng: np.random.Generator, pair: tuple[tuple, tuple], held_out: bool) -> str:
    """A wording: of the seen, or of the unseen."""
    return str(rng.choice(pair[1] if held_out else pair[0]))


def _object(task: str):
    def draw(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
        return draw_object_edit(rng, scene, task, held_out)

    return draw


def _add(
    rng: np.random.Generator,
    scene: Scene,
    held_out: bool,
    beside: bool = True,
    avoid: frozenset[str] | set[str] = frozenset(),
) -> Edit:
    """A new thing on a free spot, or (``beside``) next to one; of a kind not in ``avoid``."""
    evaluation = scene.seed >= EVALUATION_SEED
    kind, color = draw_pair(rng, evaluation, {t.kind for t in scene.things} | avoid)
    free = [spot for spot in FREE_SPOTS if _is_free(scene, spot)] or list(FREE_SPOTS)
    # The first that is seen all the time, or else the one that is seen most.
    spots = [("free", None, max(free, key=lambda spot: _times_seen(scene, spot)))]
    for index, thing in enumerate(scene.things):
        for side, (dx, dy) in BESIDE.items():
            spot = (thing.x + dx, thing.y + dy)
            good = beside and index != scene.held and _is_free(scene, spot)
            if good and _times_seen(scene, spot) >= 2:
                spots.append((side, thing, spot))
    side, anchor, spot = spots[rng.integers(len(spots))]
    place = str(rng.choice(words.PLACES[side]))
    if anchor is not None:
        place = place.format(anchor=name_thing(rng, anchor.kind, anchor.color))
    text = _pick(rng, words.ADD, held_out).format(new=name_thing(rng, kind, color), place=place)
    new = Thing(kind, color, COLORS[color], *spot, 0.0)
    return Edit("", finish(rng, text), -1, None, more=((len(scene.things), new),))


def _moments(scene: Scene) -> tuple[float, float, float]:
    """Times (s) that stand for a clip of about a second."""
    return scene.start, scene.start + 0.4, scene.start + 0.8


def _is_free(scene: Scene, spot: tuple[float, float]) -> bool:
    """Whether nothing stands, or is carried past, within 10 cm."""
    taken = [(t.x, t.y) for i, t in enumerate(scene.things) if i != scene.held]
    if scene.held >= 0:
        taken += [tuple(thing_at(scene, scene.held, at)[0][:2]) for at in _moments(scene)]
    inside = all(low <= at <= high for at, (low, high) in zip(spot, TABLE, strict=True))
    apart = [(spot[0] - x) ** 2 + (spot[1] - y) ** 2 for x, y in taken]
    return inside and min(apart) >= 0.1**2


def _times_seen(scene: Scene, spot: tuple[float, float]) -> int:
    """At how many of three times a thing there is in the picture, not behind arm or held thing."""
    target, seen = np.array([*spot, 0.05]), 0
    for time in _moments(scene):
        eye, turn = camera_at(scene, time)
        x, y, z = turn.T @ (target - eye)
        reach = np.tan(np.radians(scene.camera["fovy"]) / 2)
        inside = abs(x) < 0.9 * 4 / 3 * reach * -z and abs(y) < 0.9 * reach * -z
        arm, rotation, _ = hand_at(scene, time)
        blocks = [arm + rotation[:, 2] * along for along in np.linspace(-0.3, 0.54, 22)]
        if scene.held >= 0:
            blocks.append(thing_at(scene, scene.held, time)[0])
        ray = (target - eye) / np.linalg.norm(target - eye)
        away = [np.linalg.norm(b - eye - ray * max(0.0, ray @ (b - eye))) for b in blocks]
        seen += inside and min(away) > 0.055
    return seen


def _change_effect(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    effect = str(rng.choice(("fire", "frost", *words.HUES)))
    family = "glow" if effect in words.HUES else effect
    hue = str(rng.choice(words.HUES[effect])) if family == "glow" else ""
    if rng.random() < 0.4:
        edit = draw_object_edit(rng, scene, "replace", held_out)
        after = str(rng.choice(words.EFFECTS_AFTER[family])).format(hue=hue)
        text, named = edit.instruction.rstrip(".?"), (*SYNONYMS[edit.after.kind], " pot")
        # Only right behind the new thing's name is it clear what the effect is about.
        text += f" {after}" if text.endswith(named) else f"; it should be one {after}"
        return replace(edit, instruction=text, after=replace(edit.after, effect=effect))
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    name = name_thing(rng, thing.kind, thing.color if rng.random() < 0.6 else None)
    pair = (words.EFFECTS[family], words.EFFECTS_UNSEEN[family])
    text = finish(rng, _pick(rng, pair, held_out).format(obj=name, hue=hue))
    return Edit("", text, index, replace(thing, effect=effect))


def _background(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    name = str(rng.choice(list(BACKGROUNDS)))
    place = str(rng.choice(BACKGROUNDS[name][0]))
    text = finish(rng, _pick(rng, words.BACKGROUND, held_out).format(place=place))
    return Edit("", text, -1, None, background=name)


def _stylize(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    # Drawings are half of it, colour grades the other half.
    task = str(rng.choice(("stylize", "grade")))
    ready = [r for r in STYLES if r.task == task]
    recipe = ready[rng.integers(len(ready))]
    return Edit("", recipe_wording(rng, recipe, held_out), -1, None, look=recipe.name)


def _effect(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    name = str(rng.choice((*words.WEATHER, "night")))
    if name == "night":
        text = recipe_wording(rng, RECIPES["night"], held_out)
    else:
        text = finish(rng, _pick(rng, words.WEATHER[name], held_out))
    return Edit("", text, -1, None, look=name)


def _combined(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    """A change of one object, and another object's, or one of the scene's."""
    one = draw_object_edit(rng, scene, str(rng.choice(TASKS)))
    second = str(rng.choice(("object", "add", "background", "effect", "stylize")))
    others = [i for i in range(len(scene.things)) if i != one.index]
    if second == "object" and others:
        # In a scene of its own, so that it is about a thing that the first leaves alone. A second
        # replacement could name the first one's new kind, of which there is only one body.
        index = others[rng.integers(len(others))]
        alone = replace(scene, things=(scene.things[index],), held=-1)
        two = draw_object_edit(rng, alone, str(rng.choice(("recolour", "remove"))))
        two = replace(two, index=-1, after=None, more=((index, two.after),))
    elif second in ("object", "add"):
        # On a free spot: a neighbour could be the thing that the first changes.
        two = _add(rng, scene, False, beside=False, avoid={one.after.kind})
    else:
        two = {"background": _background, "effect": _effect, "stylize": _stylize}[second](
            rng, scene, False
        )
    a, b = _inside(one.instruction), _inside(two.instruction)
    text = finish(rng, _pick(rng, words.COMBINED, held_out).format(a=a, b=b))
    return replace(one, instruction=text, more=two.more, background=two.background, look=two.look)


def _inside(text: str) -> str:
    """An instruction as a part of another."""
    text = text.rstrip(".")
    return text if text.startswith("I ") else text[0].lower() + text[1:]


def _map_to_video(kind: str):
    def draw(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
        caption = _caption(rng, scene)
        name = str(rng.choice(words.MAPS[kind]))
        text = _pick(rng, words.FROM_MAP, held_out).format(map=name, caption=caption)
        look = "canny" if kind == "sketch" else "depth"
        return Edit("", finish(rng, text), -1, None, background=CANONICAL, source_look=look)

    return draw


def _caption(rng: np.random.Generator, scene: Scene) -> str:
    """What a picture of the scene shows; the canonical rest goes without saying."""
    names = [f"a {name_thing(rng, t.kind, t.color)}" for t in scene.things]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if scene.held >= 0 and rng.random() < 0.5:
        return f"a hand reaching for {listed} on a wooden table"
    return f"{listed} on a wooden table, and a hand"


def _to_map(task: str):
    def draw(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
        if task == "video_to_sketch":
            text = recipe_wording(rng, RECIPES["canny"], held_out)
            return Edit("", text, -1, None, look="canny")
        return Edit("", finish(rng, _pick(rng, words.DEPTH, held_out)), -1, None, look="depth")

    return draw


def _reasoning(rng: np.random.Generator, scene: Scene, held_out: bool) -> Edit:
    """A thing by its use: only uses that exactly one thing of the scene has."""
    evaluation = scene.seed >= EVALUATION_SEED
    kinds = [t.kind for t in scene.things]
    ready = [u for u in words.USES if sum(k in u[2] for k in kinds) == 1]
    seen, unseen, meant = ready[rng.integers(len(ready))]
    index = next(i for i, k in enumerate(kinds) if k in meant)
    thing, use = scene.things[index], unseen if held_out else seen
    change = str(rng.choice(TASKS))
    color, new, after = "", "", replace(thing, visible=False)
    if change == "recolour":
        while not color or color == thing.color:
            color = color_for(rng, thing.kind, evaluation)
        after = replace(thing, color=color, rgb=COLORS[color], gloss=0.3)
        if thing.kind == "cactus":  # the pot carries the colour
            use = f"pot of the {use}"
    elif change == "replace":
        described = [
            k
            for k in words.USES_FOR_NEW
            if k not in kinds and (evaluation or (k, thing.color) not in HELD_OUT_PAIRS)
        ]
        if described and rng.random() < 0.5:
            kind, new_color = str(rng.choice(described)), thing.color
            new = str(rng.choice(words.USES_FOR_NEW[kind]))
        else:
            kind, new_color = draw_pair(rng, evaluation, set(kinds))
            new = f"a {name_thing(rng, kind, new_color)}"
        after = replace(thing, kind=kind, color=new_color, rgb=COLORS[new_color], gloss=0.3)
    text = _pick(rng, words.REASONING[change], held_out).format(use=use, color=color, new=new)
    return Edit("", finish(rng, text), index, after)


_DRAW = {
    "recolour": _object("recolour"),
    "replace": _object("replace"),
    "remove": _object("remove"),
    "add": _add,
    "change_effect": _change_effect,
    "background": _background,
    "stylize": _stylize,
    "effect": _effect,
    "combined": _combined,
    "video_to_sketch": _to_map("video_to_sketch"),
    "sketch_to_video": _map_to_video("sketch"),
    "video_to_depth": _to_map("video_to_depth"),
    "depth_to_video": _map_to_video("depth"),
    "reasoning": _reasoning,
}


def evaluation_edit(
    number: int,
    seconds: float,
    tasks: tuple[str, ...] = ALL_TASKS,
    held_out_every: int = 4,
) -> tuple[Scene, Edit, bool]:
    """Scene and edit of evaluation clip ``number``: the tasks take turns, and in every
    ``held_out_every``-th round all wording is unseen in training (the third value says so)."""
    turn, place = divmod(number, len(tasks))
    unseen = turn % held_out_every == held_out_every - 1
    scene = draw_scene(EVALUATION_SEED + number, seconds)
    return scene, draw_task_edit(scene, tasks[place], unseen), unseen


def touched_pairs(scene: Scene, edit: Edit) -> set[tuple[str, str]]:
    """(kind, colour) of every thing that an edit changes, takes away or adds, before and after."""
    pairs = set()
    for index, after in edit.changes:
        if index < len(scene.things):
            pairs.add((scene.things[index].kind, scene.things[index].color))
        if after.visible:
            pairs.add((after.kind, after.color))
    return pairs
