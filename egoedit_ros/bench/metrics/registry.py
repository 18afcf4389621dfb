# SPDX-License-Identifier: Apache-2.0
"""Every figure of ``bench edit --suite egoeditbench``: unit, direction, meaning, where it applies.

The table in docs/benchmarks.md is made from this one (tools/check_instrument.py).
"""

from __future__ import annotations

from dataclasses import dataclass

HIGHER, LOWER, NEITHER = "higher", "lower", "-"

# Tasks as the paper names them (4.4, App. C), and the names that the published tables use.
TASKS = (
    "Add Object",
    "Remove Object",
    "Change Object",
    "Add Effect",
    "Change Background",
    "Change Camera Pose",
    "Stylization",
    "Reasoning",
    "Depth-to-Video",
    "Sketch-to-Video",
    "Pose-to-Video",
    "Video-to-Pose",
    "Video-to-Sketch",
    "Video-to-Depth",
    "Combined",
)
_ALIASES = {
    "add": "Add Object",
    "remove": "Remove Object",
    "change": "Change Object",
    "effect": "Add Effect",
    "background": "Change Background",
    "camera pose": "Change Camera Pose",
    "camera": "Change Camera Pose",
    "style": "Stylization",
}
# Where most of the picture is meant to stay as it is.
LOCAL_TASKS = frozenset({"Add Object", "Remove Object", "Change Object", "Reasoning"})
# Where hands are meant to stay hands, in their place.
HAND_TASKS = LOCAL_TASKS | {"Add Effect", "Change Background", "Combined"}
# Where the picture is meant to move otherwise than the source.
MOVING_TASKS = frozenset({"Change Camera Pose"})
CONTROL_TASKS = {
    "Depth-to-Video": "depth",
    "Sketch-to-Video": "sketch",
    "Pose-to-Video": "pose",
}


def task_name(text: str) -> str:
    """The paper's name of a task as a table writes it; an unknown one is kept as it is."""
    plain = " ".join(text.replace("_", " ").replace("-", " ").split()).lower()
    known = {task.replace("-", " ").lower(): task for task in TASKS} | _ALIASES
    return known.get(plain, " ".join(text.split()))


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. ``better``: which way is better. ``still``: what an unchanged video gets.

    ``paper``: one of the paper's four, or a part of it.
    """

    name: str
    title: str
    unit: str
    better: str
    meaning: str
    still: float | None = None
    paper: bool = False


METRICS = (
    Metric(
        "vlm",
        "VLM score",
        "0 to 9",
        HIGHER,
        "a vision-language judge gives 0 to 3 each for prompt following, edit quality and "
        "background consistency to every n//3-th pair of frames; sum, mean over frames",
        paper=True,
    ),
    Metric("vlm_prompt", "prompt following", "0 to 3", HIGHER, "part of the VLM score", paper=True),
    Metric("vlm_quality", "edit quality", "0 to 3", HIGHER, "part of the VLM score", paper=True),
    Metric("vlm_background", "background", "0 to 3", HIGHER, "part of the VLM score", paper=True),
    Metric(
        "pickscore",
        "PickScore",
        "about 15 to 25",
        HIGHER,
        "PickScore_v1 of edited frame and instruction, mean over frames",
        paper=True,
    ),
    Metric(
        "text_alignment",
        "text alignment",
        "cosine x 100",
        HIGHER,
        "ViCLIP (InternVid-10M-FLT), 8 frames of the edit against the instruction",
        paper=True,
    ),
    Metric(
        "clip_consistency",
        "temporal consistency",
        "cosine x 100",
        HIGHER,
        "CLIP ViT-L/14 features of neighbouring edited frames, mean",
        still=None,
        paper=True,
    ),
    Metric(
        "edit_strength",
        "edit strength",
        "CIE76 delta E",
        NEITHER,
        "mean colour difference to the source after a blur of 1.5 pixels; what is below 3 (codecs) "
        "counts as 0. 0 = nothing was done; more is not better",
        still=0.0,
    ),
    Metric(
        "changed_area",
        "changed area",
        "% of pixels",
        NEITHER,
        "pixels whose colour difference is above 3",
        still=0.0,
    ),
    Metric(
        "background_psnr",
        "background PSNR",
        "dB, at most 60",
        HIGHER,
        "over the half of each frame that changed least (regions, found by the difference blurred "
        "by 12 pixels); tasks whose edit is local only",
        still=60.0,
    ),
    Metric(
        "background_ssim",
        "background SSIM",
        "0 to 1",
        HIGHER,
        "the same of structure, in brightness",
        still=1.0,
    ),
    Metric(
        "hands_kept",
        "hands kept",
        "% of landmarks",
        HIGHER,
        "landmarks of the source's hands that are found in the edit within 15% of the hand's "
        "extent, every 4th frame; a hand not found any more counts 0. Tasks that leave hands hands",
        still=100.0,
    ),
    Metric(
        "temporal_error",
        "temporal error",
        "ratio, source = 1",
        LOWER,
        "mean difference of each frame to the one before moved by the source's DIS flow, where "
        "that flow holds, over the same of the source; 1 grey level is added to both. Below 1: "
        "smoother than the source, which a blurred or grey picture is too",
        still=1.0,
    ),
    Metric(
        "flicker",
        "flicker",
        "grey levels",
        LOWER,
        "how far the brightness of 16x12 cells is from the mean of the frames before and after, "
        "less the source's",
        still=0.0,
    ),
    Metric(
        "chunk_jump",
        "jump at chunk borders",
        "ratio, none = 1",
        LOWER,
        "temporal error of the steps across chunk borders over that of the three steps before and "
        "after each",
        still=1.0,
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
LOCAL_METRICS = tuple(m.name for m in METRICS if not m.paper)


def markdown() -> str:
    """The table of the documentation."""
    rows = ["| figure | unit | better | unchanged video | what it is |", "|---|---|---|---|---|"]
    for m in METRICS:
        still = "" if m.still is None else f"{m.still:g}"
        rows.append(f"| `{m.name}` | {m.unit} | {m.better} | {still} | {m.meaning} |")
    return "\n".join(rows) + "\n"
