# SPDX-License-Identifier: Apache-2.0
"""Edits that an algorithm can do on any footage, with the words that ask for them.

Every one is a pure function of uint8 frames ``[t, h, w, 3]`` (rgb) that gives frames of the same
shape. None looks at statistics of a single frame (no automatic threshold, no histogram), so what
stands still in the source stands still in the target: the pairs are temporally stable. Sizes
follow the picture's height, so the same words mean the same look at every resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

Frames = np.ndarray
CANNY_LOW, CANNY_HIGH = 60, 140
BLUE_OF_NIGHT = (0.42, 0.55, 0.95)


def canny_sketch(frames: Frames) -> Frames:
    """White Canny edges on black, with thresholds that never change."""
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        gray = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), _scaled(frame, 1))
        out[index] = cv2.Canny(gray, CANNY_LOW, CANNY_HIGH)[..., None]
    return out


def pencil(frames: Frames) -> Frames:
    """A pencil drawing on white paper: each pixel against the mean of its surroundings."""
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) + 1
        around = cv2.GaussianBlur(gray, (0, 0), _scaled(frame, 4))
        stroke = np.clip(gray / around, 0, 1) ** 3
        shade = 0.75 + 0.25 * np.clip(gray / 160, 0, 1)
        out[index] = (255 * stroke * shade).astype(np.uint8)[..., None]
    return out


def cartoon(frames: Frames) -> Frames:
    """Flat colours inside dark outlines."""
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        flat = frame
        for _ in range(2):
            flat = cv2.bilateralFilter(flat, 7, 40, _scaled(frame, 3))
        gray = cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY)
        edges = cv2.dilate(cv2.Canny(gray, 40, 110), np.ones((2, 2), np.uint8)) > 0
        hsv = cv2.cvtColor(flat, cv2.COLOR_RGB2HSV)
        # Steps in brightness only: steps in each channel would speckle smooth surfaces.
        hsv[..., 1] = np.minimum(255, hsv[..., 1] * 1.35)
        hsv[..., 2] = _steps(hsv[..., 2], 6)
        out[index] = np.where(edges[..., None], 20, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return out


def pixel_art(frames: Frames) -> Frames:
    """Big square pixels (64 rows of them) of few colours."""
    out = np.empty_like(frames)
    height, width = frames.shape[1:3]
    rows = min(64, height)
    columns = max(1, round(width * rows / height))
    for index, frame in enumerate(frames):
        small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
        out[index] = cv2.resize(_steps(small, 6), (width, height), interpolation=cv2.INTER_NEAREST)
    return out


def blur(frames: Frames, strength: float) -> Frames:
    """Gaussian blur; strength: its deviation in 192nds of the height."""
    return np.stack([cv2.GaussianBlur(f, (0, 0), _scaled(f, strength)) for f in frames])


def day_to_night(frames: Frames) -> Frames:
    """Dark and blue, with little colour left; what is very bright stays visible."""
    x = frames.astype(np.float32) / 255
    gray = x @ np.array([0.299, 0.587, 0.114], np.float32)
    x = gray[..., None] + 0.45 * (x - gray[..., None])
    x = 0.7 * np.clip(x, 0, 1) ** 1.5 * np.array(BLUE_OF_NIGHT, np.float32)
    return (255 * np.clip(x, 0, 1)).astype(np.uint8)


def grade(
    frames: Frames,
    gain: tuple[float, float, float] = (1, 1, 1),
    saturation: float = 1.0,
    contrast: float = 1.0,
    lift: float = 0.0,
) -> Frames:
    """Colour grading: saturation about the grey of each pixel, contrast about mid grey, then
    gain of each channel; lift (0..1) raises black."""
    x = frames.astype(np.float32) / 255
    gray = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    x = gray + saturation * (x - gray)
    x = ((x - 0.5) * contrast + 0.5) * np.array(gain, np.float32)
    return (255 * np.clip(lift + (1 - lift) * x, 0, 1)).astype(np.uint8)


def _scaled(frame: np.ndarray, pixels: float) -> float:
    """A length in pixels at 192 rows, at this frame's height."""
    return pixels * frame.shape[0] / 192


def _steps(frame: np.ndarray, levels: int) -> np.ndarray:
    """Every value in ``levels`` even steps."""
    return (np.round(frame / 255 * (levels - 1)) * (255 / (levels - 1))).astype(np.uint8)


@dataclass(frozen=True)
class Recipe:
    """One look: the task it belongs to, how to make it, and how people ask for it.

    unseen: wordings that are never used in training.
    """

    name: str
    task: str
    run: Callable[[Frames], Frames]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "canny",
            "video_to_sketch",
            canny_sketch,
            (
                "Turn the video into a Canny edge map.",
                "show only the edges, white on black",
                "turn this into a line sketch, white lines on black",
                "convert the video to an edge map",
                "extract the outlines of everything",
                "make a Canny sketch of what I see",
                "give me the edges of the scene",
                "reduce the view to its contours",
            ),
            ("trace every outline in white on a black ground", "what does the edge detector see?"),
        ),
        Recipe(
            "pencil",
            "stylize",
            pencil,
            (
                "make it look like a pencil drawing",
                "turn the video into a pencil drawing on white paper",
                "render everything as a graphite drawing",
                "draw the scene in pencil",
                "restyle the view as a hand-drawn pencil sketch on paper",
                "apply a pencil drawing style",
            ),
            ("as if someone had drawn it with a soft pencil",),
        ),
        Recipe(
            "cartoon",
            "stylize",
            cartoon,
            (
                "make it look like a cartoon",
                "turn the video into a cartoon",
                "apply a cartoon style with flat colours and dark outlines",
                "render the scene as a comic",
                "restyle everything as an animated cartoon",
                "show the world as a comic book",
            ),
            ("let me see this the way a comic artist would ink it",),
        ),
        Recipe(
            "pixel_art",
            "stylize",
            pixel_art,
            (
                "turn the video into pixel art",
                "make it look like an 8-bit video game",
                "apply a pixel art style",
                "render everything in big square pixels",
                "restyle the scene as retro pixel graphics",
                "pixelate the whole view like an old game",
            ),
            ("play this back as if on a game console from 1985",),
        ),
        Recipe(
            "warm",
            "grade",
            partial(grade, gain=(1.12, 1.0, 0.78), saturation=1.1),
            (
                "make the colours warmer",
                "give the video a warm tone",
                "grade it warm",
                "add a warm golden tint to the picture",
                "shift the whole picture towards orange",
                "warm up the colors",
            ),
            ("bathe all of it in honey-coloured tones",),
        ),
        Recipe(
            "cold",
            "grade",
            partial(grade, gain=(0.78, 0.96, 1.15), saturation=0.85),
            (
                "make the colours colder",
                "give the video a cold bluish tone",
                "grade it cold",
                "cool down the colors",
                "add a cool blue tint to the picture",
                "shift the whole picture towards blue",
            ),
            ("make the picture feel chilly through its colours",),
        ),
        Recipe(
            "sepia",
            "grade",
            partial(grade, gain=(1.08, 0.9, 0.68), saturation=0.0),
            (
                "make it sepia",
                "turn the video sepia like an old photograph",
                "apply a sepia tone",
                "give it the brown tone of an old photo",
                "tint everything sepia brown",
            ),
            ("like a photograph from my great-grandmother's album",),
        ),
        Recipe(
            "mono",
            "grade",
            partial(grade, saturation=0.0),
            (
                "make the video black and white",
                "turn it to grayscale",
                "remove all colour from the picture",
                "show everything in black and white",
                "desaturate the video completely",
            ),
            ("I want no hues at all, only greys",),
        ),
        Recipe(
            "vivid",
            "grade",
            partial(grade, saturation=1.8, contrast=1.15),
            (
                "make the colours more vivid",
                "boost the saturation",
                "make all colors pop",
                "give the video strong, saturated colours",
                "turn up the colours of the whole picture",
            ),
            ("colours as loud as they can be, please",),
        ),
        Recipe(
            "faded",
            "grade",
            partial(grade, saturation=0.6, contrast=0.75, lift=0.12),
            (
                "make it look faded",
                "give the video a washed-out, low-contrast look",
                "fade the colors like old film",
                "lower the contrast and wash out the colours",
                "apply a faded matte look",
            ),
            ("as if the picture had lain in the sun for years",),
        ),
        Recipe(
            "night",
            "day_to_night",
            day_to_night,
            (
                "make it night",
                "turn day into night",
                "make it look like it was filmed at night",
                "change the time of day to night",
                "show the scene by moonlight",
                "let night fall over the scene",
                "relight the video as a dark, bluish night",
            ),
            ("what would this look like after dark?",),
        ),
        Recipe(
            "blur",
            "blur",
            partial(blur, strength=2.5),
            (
                "blur the video",
                "make the picture blurry",
                "put everything out of focus",
                "apply a blur to the whole view",
                "defocus the camera",
            ),
            ("as seen without my glasses",),
        ),
        Recipe(
            "strong_blur",
            "blur",
            partial(blur, strength=6.0),
            (
                "blur the video heavily",
                "make the picture very blurry",
                "blur everything beyond recognition",
                "apply a very strong blur",
                "hide all details with a heavy blur",
            ),
            ("smear it so far that nobody could tell what it shows",),
        ),
    )
}
TASKS = tuple(dict.fromkeys(r.task for r in RECIPES.values()))


def finish(rng: np.random.Generator, text: str) -> str:
    """Written as people do: sometimes with a capital, sometimes with a full stop."""
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2 and text[-1] not in ".?":
        text += "."
    return text


def wording(rng: np.random.Generator, recipe: Recipe, held_out: bool = False) -> str:
    """One instruction for a recipe, drawn from ``rng``."""
    return finish(rng, str(rng.choice(recipe.unseen if held_out else recipe.seen)))


def draw_recipes(
    rng: np.random.Generator, count: int, tasks: tuple[str, ...] = TASKS, held_out: bool = False
) -> list[tuple[Recipe, str]]:
    """``count`` recipes, of different tasks as far as there are, each with its instruction."""
    chosen: list[tuple[Recipe, str]] = []
    order = [tasks[i] for i in rng.permutation(len(tasks))]
    for number in range(count):
        task = order[number % len(order)]
        taken = {recipe.name for recipe, _ in chosen}
        ready = [r for r in RECIPES.values() if r.task == task and r.name not in taken]
        if ready:
            recipe = ready[rng.integers(len(ready))]
            chosen.append((recipe, wording(rng, recipe, held_out)))
    return chosen


def recipe_table() -> str:
    """Tasks, looks and an example of the words, as a table for the documentation."""
    lines = ["| task | looks | for example |", "|---|---|---|"]
    for task in TASKS:
        recipes = [r for r in RECIPES.values() if r.task == task]
        looks = ", ".join(r.name for r in recipes)
        lines.append(f"| `{task}` | {looks} | {recipes[0].seen[0]} |")
    return "\n".join(lines) + "\n"
