# SPDX-License-Identifier: Apache-2.0
"""Wording of the simulator's further tasks: for each, phrasings of training and unseen ones.

The words for looks that an algorithm makes are in :mod:`egoedit_ros.data.algorithmic`.
"""

from __future__ import annotations

ADD = (
    (
        "add a {new} {place}",
        "put a {new} {place}",
        "place a {new} {place}",
        "insert a {new} {place}",
        "there should be a {new} {place}",
        "show a {new} {place}",
        "let a {new} stand {place}",
        "I want to see a {new} {place}",
        "a {new} appears {place}",
        "set a {new} down {place}",
        "Add a {new} {place}, keep everything else.",
    ),
    ("would you mind adding a {new} {place}?", "{place}, a {new} would be nice"),
)
PLACES = {
    "right": ("to the right of the {anchor}", "right of the {anchor}"),
    "left": ("to the left of the {anchor}", "left of the {anchor}"),
    "behind": ("behind the {anchor}",),
    "front": ("in front of the {anchor}",),
    "free": ("on the table", "on the surface", "onto the table"),
}

EFFECTS = {
    "fire": (
        "set the {obj} on fire",
        "make the {obj} burn",
        "let flames rise from the {obj}",
        "the {obj} is in flames",
        "surround the {obj} with fire",
        "wrap the {obj} in flames",
        "make the {obj} burst into flames",
        "add fire to the {obj}",
    ),
    "frost": (
        "cover the {obj} in frost",
        "freeze the {obj}",
        "make the {obj} icy, with white crystals on it",
        "the {obj} is frozen over",
        "coat the {obj} with ice and frost",
        "let frost grow on the {obj}",
        "turn the {obj} to ice",
    ),
    "glow": (
        "make the {obj} glow {hue}",
        "let the {obj} shine with a {hue} light",
        "the {obj} gives off a {hue} glow",
        "add a {hue} glow to the {obj}",
        "make the {obj} light up {hue}",
        "surround the {obj} with a {hue} halo of light",
        "have the {obj} radiate {hue} light",
    ),
}
EFFECTS_UNSEEN = {
    "fire": ("ignite the {obj}", "the {obj} has caught fire, show that"),
    "frost": ("the {obj} just came out of a deep freezer",),
    "glow": ("as if the {obj} were a {hue} lamp",),
}
# After "replace the mug with a blue bottle".
EFFECTS_AFTER = {
    "fire": ("that is on fire", "in flames", "with flames rising from it"),
    "frost": ("covered in frost", "that is frozen over", "made icy by frost"),
    "glow": ("that glows {hue}", "with a {hue} glow", "giving off {hue} light"),
}
HUES = {"glow_gold": ("golden", "gold"), "glow_blue": ("blue",), "glow_green": ("green",)}

BACKGROUND = (
    (
        "change the background to {place}",
        "replace the background with {place}",
        "put the scene in {place}",
        "move everything to {place}",
        "make the surroundings {place}",
        "show the hand and the objects in {place}",
        "turn the place into {place}",
        "the whole setting becomes {place}",
        "swap the surroundings for {place}, keep the hand and the objects",
        "it should all take place in {place}",
    ),
    ("transport me to {place}", "if this happened in {place}, how would it look?"),
)
WEATHER = {
    "fog": (
        ("add fog", "fill the scene with thick fog", "make it foggy", "let mist drift in",
         "cover everything in fog", "a dense fog hangs over the table"),
        ("one can hardly see through the haze in here",),
    ),
    "rain": (
        ("make it rain", "add rain", "let it rain over the scene", "add falling rain to the video",
         "rain is pouring down", "turn this into a rainy day"),
        ("a downpour has started",),
    ),
    "snow": (
        ("make it snow", "add falling snow", "let snowflakes fall", "snow is falling on the scene",
         "add snowfall to the video", "fill the air with snowflakes"),
        ("the first flakes of winter come down",),
    ),
    "underwater": (
        ("put the scene under water", "make it look like it is under water",
         "flood the whole scene", "submerge everything", "turn this into an underwater scene",
         "as seen by a diver under water"),
        ("sink it all to the bottom of the sea",),
    ),
}  # fmt: skip

DEPTH = (
    (
        "Turn the video into a depth map.",
        "show how far away everything is, near things white",
        "convert the video to a depth map",
        "give me the depth of the scene in grey",
        "estimate the depth and show it",
        "replace the picture by its depth map",
        "make a greyscale depth map of the view",
    ),
    ("brightness should tell me the distance", "what would a depth camera show here?"),
)
FROM_MAP = (
    (
        "Turn the {map} into a video with the following description: {caption}.",
        "make a video from this {map}: {caption}",
        "this {map} shows {caption}; make it real",
        "fill in the {map}: {caption}",
        "render the {map} as a real scene with {caption}",
        "bring the {map} to life: {caption}",
    ),
    ("imagine the camera's view behind this {map}: {caption}",),
)
MAPS = {"sketch": ("sketch", "Canny edge map", "line drawing"), "depth": ("depth map",)}

COMBINED = (
    (
        "{a} and {b}",
        "{a}, then {b}",
        "{a}, and also {b}",
        "first {a}, then {b}",
        "two changes: {a}; {b}",
        "{a}; besides that, {b}",
    ),
    ("{b}, but before that {a}", "both of these, please: {a}, {b}"),
)

# What it is for instead of what it is: (words, unseen words, kinds it can mean).
USES = (
    ("thing you would drink from", "thing for when you are thirsty", ("mug", "can", "bottle")),
    ("thing you would drink hot coffee from", "thing that goes on a saucer", ("mug",)),
    ("thing you could read", "thing that has pages", ("book",)),
    ("toy that would bounce", "thing a dog would fetch", ("ball",)),
    ("object that would roll away first", "object with no flat side", ("ball",)),
    ("plant", "thing that needs a little water now and then", ("cactus",)),
    ("thing that would prick your finger", "thing that grew in a desert", ("cactus",)),
    ("thing with six equal faces", "thing shaped like a die", ("cube",)),
    ("thing with a handle", "thing you hold by its ear", ("mug",)),
    ("thing with a screw cap", "thing you would put a message in", ("bottle",)),
    ("thing that ends in a sharp point", "thing that would mark roadworks", ("cone",)),
    ("thing made of tin", "thing you would need an opener for", ("can",)),
)
USES_FOR_NEW = {
    "book": ("something to read", "something with pages"),
    "mug": ("something to drink coffee from",),
    "ball": ("something round that bounces", "something to play catch with"),
    "cactus": ("a plant that needs hardly any water", "a plant from the desert"),
}
REASONING = {
    "recolour": (
        ("make the {use} {color}", "paint the {use} {color}", "the {use} should be {color}",
         "change the color of the {use} to {color}", "turn the {use} {color}"),
        ("give the {use} a fresh coat of {color}",),
    ),
    "replace": (
        ("replace the {use} with {new}", "swap the {use} for {new}", "turn the {use} into {new}",
         "instead of the {use} show {new}", "exchange the {use} for {new}"),
        ("I would rather have {new} than the {use}",),
    ),
    "remove": (
        ("remove the {use}", "take away the {use}", "make the {use} disappear",
         "get rid of the {use}", "erase the {use}", "show the scene without the {use}"),
        ("nobody needs the {use} here, lose it",),
    ),
}  # fmt: skip
