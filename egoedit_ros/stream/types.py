# SPDX-License-Identifier: Apache-2.0
"""What passes through a stream: frames, instructions, edited frames, and how to treat them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from egoedit_ros.errors import UserError

OUTPUT_SIZES = ("model", "camera")
FITS = ("stretch", "crop")
EMITS = ("burst", "paced")
POLICIES = ("latest", "all")


@dataclass(slots=True)
class Frame:
    """One camera picture on its way in.

    stamp_ns: the camera's stamp. image: uint8 ``[H, W, 3]`` rgb at the camera's size; only read.
    arrival_ns: when it came in, by ``time.perf_counter_ns``. transport_ms: what it took to come,
    0 where not known. started_ns: when the first stage took it up (decoding the message); 0 means
    when it is pushed. token: anything the caller wants back with the edited frame (its header).
    """

    stamp_ns: int
    image: np.ndarray
    arrival_ns: int
    transport_ms: float = 0.0
    token: object = None
    started_ns: int = 0


@dataclass(slots=True, frozen=True)
class Instruction:
    """What to do to the picture, in plain words.

    id: names it in messages and reports. text: empty passes the camera through. stamp_ns: first
    frame it applies to, 0 for as soon as possible. reset: forget the generated past with it.
    arrival_ns: when it came in, by ``time.perf_counter_ns``.
    """

    id: str
    text: str
    seed: int = 0
    stamp_ns: int = 0
    reset: bool = False
    arrival_ns: int = 0


@dataclass(slots=True)
class EditedFrame:
    """One picture on its way out; every frame that went in and was not dropped has exactly one.

    image: uint8 ``[h, w, 3]`` rgb at the output size; mask: uint8 ``[h, w]``, 255 where the edit
    replaced the camera's pixel. frame_index and chunk_index count since the editor was made.
    instruction: in force for this chunk, None before the first. first_of_instruction: the first
    frame that shows it. stages: milliseconds by stage, without ``publish``; they cover the time
    from the camera's publication to ``ready_ns``.
    """

    frame: Frame
    image: np.ndarray
    mask: np.ndarray
    edited: bool
    frame_index: int
    chunk_index: int
    instruction: Instruction | None
    first_of_instruction: bool
    stages: dict[str, float]
    ready_ns: int
    chunk_size: int = 1
    position: int = 0


@dataclass(slots=True)
class StreamSettings:
    """How a stream treats pictures.

    size: (width, height) the model works at, None for the session's own. output_size: ``model``,
    or ``camera`` for the edit upsampled onto the camera's full picture. fit: ``stretch`` the
    camera to the model's shape, or ``crop`` its centre. preserve: keep the camera's pixels where
    nothing is edited (the session's business; here for the record). emit: ``burst`` or ``paced``
    (the caller's business).
    """

    size: tuple[int, int] | None = None
    output_size: str = "model"
    fit: str = "stretch"
    preserve: bool = True
    emit: str = "burst"
    bypass: bool = field(default=False)

    def __post_init__(self) -> None:
        for value, name, choices in (
            (self.output_size, "output_size", OUTPUT_SIZES),
            (self.fit, "fit", FITS),
            (self.emit, "emit", EMITS),
        ):
            if value not in choices:
                raise UserError(f"{name} is {value!r}; use one of: {', '.join(choices)}")


def parse_size(text: str) -> tuple[int, int] | None:
    """``'256x192'`` -> (256, 192); empty -> None (the model's own). Raises UserError."""
    if not text.strip():
        return None
    width, cross, height = text.strip().lower().partition("x")
    if not (cross and width.isascii() and height.isascii() and width.isdigit()):
        raise UserError(f"size {text!r} is not WIDTHxHEIGHT, such as 256x192")
    if not height.isdigit() or not 1 <= int(width) <= 8192 or not 1 <= int(height) <= 8192:
        raise UserError(f"size {text!r} is not WIDTHxHEIGHT with both from 1 to 8192")
    return int(width), int(height)
