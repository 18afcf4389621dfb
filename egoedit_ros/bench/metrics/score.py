# SPDX-License-Identifier: Apache-2.0
"""All figures that need no download, of one pair of clips."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2

from egoedit_ros.bench.grid import GRID, Pair
from egoedit_ros.bench.metrics import hands, motion, picture
from egoedit_ros.bench.metrics.registry import HAND_TASKS, LOCAL_METRICS, LOCAL_TASKS, MOVING_TASKS

# Frames of the paper's real-time model: 3 latent frames to a chunk.
PAPER_CHUNKS = (9, 12)
# Pictures change slowly against the frame rate; these figures do not need every one.
PICTURE_EVERY = 4

Values = dict[str, float | None]
NOT_FOR_TASK = "does not apply to this task"


@dataclass(slots=True)
class SourceKnown:
    """What was found in a source, to be given again with another edit of it: hands by number of
    the frame, motion by the frames taken."""

    hands: dict[int, hands.Hands] = field(default_factory=dict)
    motion: dict[bytes, list[motion.Step | None]] = field(default_factory=dict)


def score_pair(
    pair: Pair,
    task: str | None = None,
    chunks: tuple[int, int] | None = PAPER_CHUNKS,
    known: SourceKnown | None = None,
) -> tuple[Values, dict[str, str]]:
    """(figures by name, why those that are None are not there).

    task: of the registry, deciding what applies; None: everything does. chunks: frames of the
    first and of the other chunks, None where the editor knows no chunks. known: filled here.
    """
    known = known or SourceKnown()
    cv2.setNumThreads(1)
    values: Values = dict.fromkeys(LOCAL_METRICS)
    why: dict[str, str] = {}
    looked_at = range(0, len(pair.source), PICTURE_EVERY)
    source, edited = pair.source[::PICTURE_EVERY], pair.edited[::PICTURE_EVERY]
    differences = [picture.colour_difference(s, e) for s, e in zip(source, edited, strict=True)]
    values["edit_strength"], values["changed_area"] = picture.edit_strength(differences)

    if task is None or task in LOCAL_TASKS:
        kept = picture.background(source, edited, differences)
        values["background_psnr"], values["background_ssim"] = kept
    else:
        why |= {"background_psnr": NOT_FOR_TASK, "background_ssim": NOT_FOR_TASK}

    small = motion.small(pair.source), motion.small(pair.edited)
    values["flicker"] = motion.flicker(*small)
    if task in MOVING_TASKS:
        why |= {"temporal_error": NOT_FOR_TASK, "chunk_jump": NOT_FOR_TASK}
    else:
        frames = pair.source_index.tobytes()
        if frames not in known.motion:
            known.motion[frames] = motion.source_motion(small[0])
        errors = [motion.warp_errors(clip, known.motion[frames]) for clip in small]
        values["temporal_error"] = motion.temporal_error(*errors)
        if chunks is None:
            why["chunk_jump"] = "this editor has no chunks"
        else:
            borders = motion.chunk_borders(int(pair.edited_index[-1]) + 1, *chunks)
            values["chunk_jump"] = motion.chunk_jump(*errors, pair.edited_index, borders)

    lacking = hands.missing() if task is None or task in HAND_TASKS else NOT_FOR_TASK
    if lacking:
        why["hands_kept"] = lacking
    else:
        before = []
        for i in looked_at:
            index = int(pair.source_index[i])
            if index not in known.hands:
                known.hands[index] = hands.find_hands(pair.source[i])
            before.append(known.hands[index])
        after = [hands.find_hands(frame) for frame in edited]
        values["hands_kept"] = hands.hands_kept(before, after, GRID[0] / GRID[1])

    reasons = {
        "temporal_error": "the source's flow holds nowhere",
        "chunk_jump": "fewer than two chunk borders",
        "hands_kept": "hardly any hand is found in the source",
    }
    for name, value in values.items():
        if value is None:
            why.setdefault(name, reasons.get(name, "not measured"))
    return values, why
