# SPDX-License-Identifier: Apache-2.0
"""More ways to ask for an edit of an object, put together from parts; for training alone.

:mod:`vocabulary` has whole sentences, of which evaluation draws, too. Here an opening, a request
and an ending are joined, so that a network hears thousands of different ones and learns what
matters in them. None of the requests is one of those that are kept for evaluation
(``*_HELD_OUT``), nor has its telling words.
"""

from __future__ import annotations

import numpy as np

from egoedit_ros.data.sim.vocabulary import name_edited, name_thing, with_article

OPENINGS = (
    "please ", "now ", "can you ", "would you ", "I would like you to ", "go ahead and ", "just ",
    "try to ", "let us ", "we have to ", "your task is to ", "hey, ", "next, ", "for this clip, ",
    "from here on, ", "in the video, ", "kindly ", "you should ", "I need you to ", "quickly ",
)  # fmt: skip
ENDINGS = (
    ", please", " now", " at once", " and leave everything else as it is",
    ", the rest stays as it is", " without touching the hand", " but keep the hand",
    " in this video", " for me", " here", " in every frame", ", nothing else changes",
    " and keep the background", ", the fingers stay where they are", ", thanks",
    " and make it look real", " from now on",
)  # fmt: skip
DETERMINERS = ("the", "the", "the", "that", "this", "my")

# {obj}: what there is, with its determiner; {noun}: without; {old}: its colour; {color}, {new}:
# what is wanted. Orders can have an opening; statements stand alone.
ORDERS = {
    "recolour": (
        "make {obj} {color}", "turn {obj} {color}", "paint {obj} {color}", "colour {obj} {color}",
        "dye {obj} {color}", "tint {obj} {color}", "spray {obj} {color}",
        "recolour {obj} in {color}", "set the colour of {obj} to {color}",
        "coat {obj} in {color} paint", "change the colour of {obj} from {old} to {color}",
        "change {obj} from {old} to {color}", "replace the {old} of {obj} with {color}",
        "render {obj} in {color}", "use {color} for {obj}", "swap the {old} for {color} on {obj}",
        "give {obj} the colour {color}", "give {obj} a {color} finish",
        "replace {obj} with an identical one in {color}", "edit {obj} to be {color}",
        "repaint {obj} in {color}", "turn the colour of {obj} into {color}",
        "exchange {obj} for the {color} version of it", "cover {obj} with {color} paint",
        "keep {obj} but make it {color}", "take the {old} {noun} and make it {color}",
    ),
    "replace": (
        "replace {obj} with {new}", "swap {obj} for {new}", "swap {obj} with {new}",
        "swap out {obj} for {new}", "trade {obj} for {new}", "turn {obj} into {new}",
        "morph {obj} into {new}", "change {obj} to {new}", "change {obj} into {new}",
        "exchange {obj} with {new}", "put {new} where {obj} is", "use {new} in place of {obj}",
        "show {new} in place of {obj}", "take {obj} out and put {new} there",
        "remove {obj} and put {new} in its place", "make {new} out of {obj}", "make {obj} {new}",
        "edit {obj} to be {new}", "render {obj} as {new}", "substitute {obj} with {new}",
        "place {new} where {obj} is", "draw {new} over {obj}", "change {obj} so that it is {new}",
        "remodel {obj} as {new}", "set {new} where {obj} stands",
    ),
    "remove": (
        "remove {obj}", "delete {obj}", "erase {obj}", "take {obj} away", "take away {obj}",
        "take {obj} out", "get rid of {obj}", "drop {obj} from the scene", "eliminate {obj}",
        "omit {obj}", "discard {obj}", "strip {obj} from the scene", "edit {obj} out",
        "edit out {obj}", "paint over {obj}", "make {obj} go away", "make {obj} invisible",
        "fade {obj} out", "throw {obj} out", "leave out {obj}", "leave {obj} out", "clear {obj}",
        "make {obj} vanish", "make {obj} disappear", "hide {obj}", "cut {obj} from the video",
        "remove {obj} from the table or the hand", "empty the place where {obj} is",
    ),
}  # fmt: skip
STATEMENTS = {
    "recolour": (
        "{obj} ought to be {color}", "{obj} must be {color}", "I need {obj} in {color}",
        "I would like {obj} in {color}", "{obj} in {color}", "{color} for {obj}",
        "{color} is the colour that {obj} should have", "{obj} has turned {color}",
        "{obj} is {color}, not {old}", "I prefer {obj} in {color}", "the same {noun}, but {color}",
        "only the colour of {obj} changes, to {color}", "the {old} {noun} becomes {color}",
        "I want {color} instead of {old} on {obj}", "{obj} gets painted {color}",
        "what if {obj} was {color}", "{obj}: {color}",
        "a {color} {noun} where the {old} one is",
    ),
    "replace": (
        "{obj} is now {new}", "{obj} turns into {new}", "{obj} has become {new}",
        "I would like {new} in the place of {obj}", "let me see {new} where {obj} was",
        "{new} instead of {obj}", "where {obj} is, show {new}", "in place of {obj}, {new}",
        "{new} takes the place of {obj}", "I need {new} where {obj} is", "{obj} to {new}",
        "{obj} gets replaced by {new}", "what used to be {obj} is {new}",
        "{obj} must be {new}", "I want {obj} to be {new}", "let {obj} turn into {new}",
    ),
    "remove": (
        "{obj} is gone", "{obj} has to go", "{obj} must not be seen", "no more {noun}",
        "without {obj}", "I want {obj} gone", "I do not want {obj} in the scene",
        "{obj} should be gone", "everything but {obj}", "nothing where {obj} is",
        "{obj} has vanished", "{obj} is not needed", "there is no longer a {noun}",
        "the scene, but without {obj}", "{obj} disappears", "let {obj} be gone",
    ),
}  # fmt: skip


def phrase(
    rng: np.random.Generator,
    task: str,
    kind: str,
    color: str,
    new_kind: str | None = None,
    new_color: str | None = None,
) -> str:
    """An instruction, with the arguments of :func:`vocabulary.instruction`."""
    order = rng.random() < 0.7
    template = str(rng.choice((ORDERS if order else STATEMENTS)[task]))
    # A colour that is told anyway is not told twice.
    say_color = "{old}" not in template and rng.random() < 0.6
    noun = name_edited(rng, task, kind, color if say_color else None)
    new = name_thing(rng, new_kind, new_color) if new_kind else ""
    text = template.format(
        obj=f"{rng.choice(DETERMINERS)} {noun}", noun=noun, old=color, color=new_color,
        new=f"a {new}",
    )  # fmt: skip
    if order and rng.random() < 0.4:
        text = str(rng.choice(OPENINGS)) + text
    if rng.random() < 0.35:
        text += str(rng.choice(ENDINGS))
    text = with_article(text)
    if rng.random() < 0.4:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "?" if text.lower().startswith(("can you", "would you", "what if")) else "."
    return text
