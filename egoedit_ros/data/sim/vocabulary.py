# SPDX-License-Identifier: Apache-2.0
"""What the simulator can show and say: kinds, colours, and the wording of instructions.

Templates hurt (EgoEdit, App. F), so each task has many phrasings; a few are never used in
training, and neither are some object-colour pairs: they measure how far the model generalises.
"""

from __future__ import annotations

import re

import numpy as np

KINDS = ("ball", "cube", "can", "mug", "bottle", "cone", "cactus", "book")
COLORS = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.22, 0.85),
    "yellow": (0.95, 0.83, 0.08),
    "orange": (0.97, 0.46, 0.04),
    "purple": (0.48, 0.12, 0.66),
    "pink": (0.97, 0.50, 0.70),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.07),
}
# Seen only in evaluation, neither as a source nor as a target of training.
HELD_OUT_PAIRS = frozenset(
    [
        ("ball", "purple"),
        ("cube", "orange"),
        ("can", "yellow"),
        ("mug", "green"),
        ("bottle", "pink"),
        ("cone", "blue"),
        ("cactus", "red"),
        ("book", "white"),
    ]
)
TASKS = ("recolour", "replace", "remove")
EVALUATION_SEED = 1_000_000

SYNONYMS = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "box", "block"),
    "can": ("can", "can", "tin", "tin can"),
    "mug": ("mug", "mug", "cup", "coffee mug"),
    "bottle": ("bottle", "bottle", "flask"),
    "cone": ("cone", "cone", "cone shape"),
    "cactus": ("cactus", "potted cactus", "small cactus", "cactus in a pot"),
    "book": ("book", "book", "hardcover book", "notebook"),
}

_RECOLOUR = (
    "make the {obj} {color}",
    "turn the {obj} {color}",
    "change the color of the {obj} to {color}",
    "change the {obj} to {color}",
    "paint the {obj} {color}",
    "recolor the {obj} to {color}",
    "the {obj} should be {color}",
    "I want the {obj} to be {color}",
    "give the {obj} a {color} color",
    "please make that {obj} {color}",
    "color the {obj} {color}",
    "let the {obj} become {color}",
    "Change the {obj}'s colour to a bright {color}, keep the hand as it is.",
    "show the {obj} in {color} instead",
    "dye the {obj} {color}",
    "the {obj} is now {color}",
)
_RECOLOUR_HELD_OUT = (
    "could you have the {obj} appear {color}?",
    "switch the {obj} over to a {color} one of the same shape",
    "{color} would suit the {obj} better",
)
_REPLACE = (
    "replace the {obj} with a {new}",
    "replace the {obj} by a {new}",
    "turn the {obj} into a {new}",
    "swap the {obj} for a {new}",
    "change the {obj} into a {new}",
    "put a {new} in place of the {obj}",
    "instead of the {obj} show a {new}",
    "make the {obj} a {new}",
    "transform the {obj} into a {new}",
    "the {obj} becomes a {new}",
    "I want a {new} where the {obj} is",
    "exchange the {obj} for a {new}, leave everything else",
    "Replace the {obj} with a {new} and keep the hand natural.",
    "substitute a {new} for the {obj}",
    "let the {obj} be a {new}",
)
_REPLACE_HELD_OUT = (
    "imagine the {obj} were a {new} and show me that",
    "there should be a {new}, not the {obj}",
    "convert that {obj} to a {new} please",
)
_REMOVE = (
    "remove the {obj}",
    "delete the {obj}",
    "take the {obj} away",
    "get rid of the {obj}",
    "erase the {obj} from the scene",
    "make the {obj} disappear",
    "make the {obj} vanish",
    "the {obj} should not be there",
    "hide the {obj}",
    "clear away the {obj}",
    "show the scene without the {obj}",
    "Remove the {obj} and fill in the background.",
    "let the {obj} disappear",
    "I do not want to see the {obj}",
    "cut out the {obj}",
)
_REMOVE_HELD_OUT = (
    "pretend the {obj} was never here",
    "wipe the {obj} out of the picture",
    "the view with no {obj}, please",
)
_WORDING = {
    "recolour": (_RECOLOUR, _RECOLOUR_HELD_OUT),
    "replace": (_REPLACE, _REPLACE_HELD_OUT),
    "remove": (_REMOVE, _REMOVE_HELD_OUT),
}


def with_article(text: str) -> str:
    """The text with "an" where a colour needs it."""
    return re.sub(r"\b([aA]) (?=orange)", r"\1n ", text)


def name_thing(rng: np.random.Generator, kind: str, color: str | None) -> str:
    """What a thing of a kind may be called, with its colour if one is given."""
    noun = str(rng.choice(SYNONYMS[kind]))
    if color is None:
        return noun
    if kind == "cactus":  # the pot carries the colour
        return f"{str(rng.choice(('cactus', 'small cactus')))} in a {color} pot"
    return f"{color} {noun}"


def name_edited(rng: np.random.Generator, task: str, kind: str, color: str | None) -> str:
    """What of a thing a task edits: of a cactus, a new colour is for the pot."""
    if kind == "cactus" and task == "recolour":
        return str(rng.choice(("pot of the cactus", "cactus pot", "pot under the cactus")))
    return name_thing(rng, kind, color)


def instruction(
    rng: np.random.Generator,
    task: str,
    kind: str,
    color: str,
    new_kind: str | None = None,
    new_color: str | None = None,
    held_out: bool = False,
) -> str:
    """One natural instruction. ``new_color`` None leaves the colour unsaid: it stays ``color``."""
    seen, unseen = _WORDING[task]
    template = str(rng.choice(unseen if held_out else seen))
    say_color = rng.random() < 0.6
    obj = name_edited(rng, task, kind, color if say_color else None)
    new = name_thing(rng, new_kind, new_color) if new_kind else ""
    text = with_article(template.format(obj=obj, color=new_color, new=new))
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2 and text[-1] not in ".?":
        text += "."
    return text
