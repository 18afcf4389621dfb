# SPDX-License-Identifier: Apache-2.0
"""The simulator's tasks: what each changes, and what it is called in EgoEditBench."""

from __future__ import annotations

from dataclasses import dataclass

from egoedit_ros.data.sim.vocabulary import TASKS
from egoedit_ros.errors import UserError


@dataclass(frozen=True)
class Task:
    """One task. paper: its EgoEditBench name; source: what the source shows (else the scene)."""

    name: str
    paper: str
    what: str
    source: str = ""


TASK_TABLE = (
    Task("recolour", "Change Object", "one object gets another colour"),
    Task("replace", "Change Object", "another object stands, or is carried, in its place"),
    Task("remove", "Remove Object", "one object and its shadow are gone"),
    Task("add", "Add Object", "a new object beside one that is there, or on the table"),
    Task("change_effect", "Change Object", "an object, changed or not, burns, glows or is frozen"),
    Task("background", "Change Background", "table, floor and wall become another place"),
    Task("stylize", "Stylization", "cartoon, pencil, pixel art, or a colour grade"),
    Task("effect", "Add Effect", "fog, rain, snow, night or water over the whole scene"),
    Task("combined", "Combined", "two of the others at once"),
    Task("video_to_sketch", "Video-to-Sketch", "Canny edges, white on black"),
    Task("sketch_to_video", "Sketch-to-Video", "the picture that a sketch and a caption mean",
         "sketch"),
    Task("video_to_depth", "Video-to-Depth", "inverse depth, near is white"),
    Task("depth_to_video", "Depth-to-Video", "the picture that a depth map and a caption mean",
         "depth map"),
    Task("reasoning", "Reasoning", "an object that is described by its use, not named"),
)  # fmt: skip
# Numbers in this order seed what is drawn: append only.
ALL_TASKS = tuple(task.name for task in TASK_TABLE)
FROM_MAP = tuple(task.name for task in TASK_TABLE if task.source)
assert ALL_TASKS[: len(TASKS)] == TASKS


def parse_tasks(text: str) -> tuple[str, ...]:
    """``all``, or names with commas between. Raises UserError for a name that is none."""
    names = ALL_TASKS if text == "all" else tuple(n.strip() for n in text.split(",") if n.strip())
    wrong = [name for name in names if name not in ALL_TASKS]
    if wrong or not names:
        said = f"no task {wrong[0]!r}" if wrong else "no task named"
        raise UserError(f"{said}; give 'all' or some of: {', '.join(ALL_TASKS)}")
    return tuple(dict.fromkeys(names))


def task_table() -> str:
    """The tasks as a table for the documentation."""
    lines = ["| task | in EgoEditBench | what changes |", "|---|---|---|"]
    for task in TASK_TABLE:
        source = f" (source: a {task.source})" if task.source else ""
        lines.append(f"| `{task.name}` | {task.paper} | {task.what}{source} |")
    return "\n".join(lines) + "\n"
