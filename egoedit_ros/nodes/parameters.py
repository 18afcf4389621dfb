# SPDX-License-Identifier: Apache-2.0
"""The editor's and the instruction node's parameters: one table each, checked in one place.

The tables need no ROS, so that documentation can be made from them; declaring does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from egoedit_ros.errors import UserError
from egoedit_ros.stream.instructions import MAX_SEED, check_text, parse_timed
from egoedit_ros.stream.types import EMITS, FITS, OUTPUT_SIZES, POLICIES, parse_size

# When a parameter may be changed.
ALWAYS = "any time"
UNCONFIGURED = "before configure"
START = "at start"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its range (least, most), its choices, or a check that raises UserError."""

    name: str
    default: Any
    description: str
    change: str = UNCONFIGURED
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    check: Callable[[Any], object] | None = None


EDITOR_PARAMETERS = (
    Parameter("model", "edge", "model: a bundled name (edge), null, or a path to weights"),
    Parameter("device", "auto", "where the model runs", choices=("auto", "cpu", "cuda")),
    Parameter(
        "size", "256x192", "WIDTHxHEIGHT the model works at; empty: its own", check=parse_size
    ),
    Parameter(
        "chunk_latents",
        0,
        "latent frames a chunk, 4 pictures each; 0: the model's",
        least=0,
        most=64,
    ),
    Parameter("nfe", 0, "denoising steps; 0: the model's", least=0, most=100),
    Parameter(
        "seed", 0, "seed for instruction_text and the instruction parameter", ALWAYS, 0, MAX_SEED
    ),
    Parameter("threads", 0, "CPU threads of the model; 0: by the machine", least=0, most=1024),
    Parameter(
        "policy",
        "latest",
        "latest: drop frames when too slow; all: keep every one",
        choices=POLICIES,
    ),
    Parameter(
        "input_transport", "raw", "image_raw or image_raw/compressed", choices=("raw", "compressed")
    ),
    Parameter("output_size", "model", "size of what is sent", choices=OUTPUT_SIZES),
    Parameter("fit", "stretch", "how the camera's shape is brought to the model's", choices=FITS),
    Parameter(
        "emit",
        "burst",
        "a chunk's frames at once, or spread over its period",
        ALWAYS,
        choices=EMITS,
    ),
    Parameter("preserve", True, "keep the camera's own pixels where nothing is edited"),
    Parameter("recache", False, "on a new instruction, regenerate the cached past under it"),
    Parameter(
        "blend_chunks",
        0,
        "chunks that lead from the old instruction to the new",
        least=0,
        most=1000,
    ),
    Parameter(
        "flush_timeout", 1.0, "seconds without a frame that end the stream", ALWAYS, 0.01, 86400.0
    ),
    Parameter(
        "deadline_ms",
        0.0,
        "latency budget of a frame; 0: one chunk period and 100 ms",
        ALWAYS,
        0.0,
        1e7,
    ),
    Parameter(
        "camera_fps",
        16.0,
        "the camera's nominal rate, for the default deadline",
        ALWAYS,
        0.1,
        10000.0,
    ),
    Parameter(
        "instruction",
        "",
        "instruction to begin with; empty: pass the camera through",
        ALWAYS,
        check=check_text,
    ),
    Parameter("jpeg_quality", 90, "of edited/image_raw/compressed", ALWAYS, 1, 100),
    Parameter("bypass", False, "pass the camera through, whatever the instruction", ALWAYS),
    Parameter("autostart", True, "configure and activate without being told to", START),
)

INSTRUCTION_PARAMETERS = (
    Parameter(
        "timeline",
        [""],
        "instructions as SECONDS:TEXT; seconds of the stream",
        START,
        check=lambda lines: [parse_timed(line) for line in lines if line.strip()],
    ),
    Parameter(
        "timeline_file", "", "YAML list of {at, text, seed, reset}, instead of timeline", START
    ),
    Parameter("seed", 0, "seed of the timeline's instructions", START, 0, MAX_SEED),
    Parameter(
        "start_stamp_ns",
        -1,
        "the stream's first stamp; -1: learn it from the first image",
        START,
        -1,
        2**63 - 1,
    ),
    Parameter(
        "input_transport",
        "raw",
        "where the first image is seen",
        START,
        choices=("raw", "compressed"),
    ),
    Parameter(
        "wait_timeout",
        60.0,
        "seconds to wait for an editor that takes what is due at 0",
        START,
        0.0,
        86400.0,
    ),
)


def check(table: Iterable[Parameter], values: Mapping[str, Any]) -> None:
    """Raise UserError with the reason for the first value that the table does not allow."""
    known = {p.name: p for p in table}
    for name, value in values.items():
        parameter = known.get(name)
        if parameter is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, not a number")
        if parameter.choices and value not in parameter.choices:
            raise UserError(f"{name} is {value!r}; use one of: {', '.join(parameter.choices)}")
        if parameter.least is not None and not parameter.least <= value <= parameter.most:
            raise UserError(
                f"{name} is {value}; it goes from {parameter.least} to {parameter.most}"
            )
        if parameter.check is not None:
            try:
                parameter.check(value)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None


def check_changeable(table: Iterable[Parameter], names: Iterable[str]) -> None:
    """Raise UserError for the first parameter that is fixed while the node is configured."""
    fixed = {p.name for p in table if p.change == UNCONFIGURED}
    for name in names:
        if name in fixed:
            raise UserError(f"{name} cannot change while configured; clean up first")


def declare(node: Any, table: Iterable[Parameter]) -> None:
    """Declare a table's parameters on an rclpy node; UserError for a value it does not allow.

    Overrides (YAML, command line) are checked like later changes.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    for parameter in table:
        descriptor = ParameterDescriptor(
            description=parameter.description,
            read_only=parameter.change == START,
            additional_constraints=_constraints(parameter),
        )
        if parameter.least is not None:
            if isinstance(parameter.default, float):
                span = FloatingPointRange(from_value=parameter.least, to_value=parameter.most)
                descriptor.floating_point_range = [span]
            else:
                span = IntegerRange(from_value=parameter.least, to_value=parameter.most)
                descriptor.integer_range = [span]
        try:
            node.declare_parameter(parameter.name, parameter.default, descriptor)
        except InvalidParameterTypeException:
            kind = type(parameter.default).__name__
            raise UserError(f"parameter {parameter.name} must be of type {kind}") from None
        except InvalidParameterValueException as error:
            reason = str(error).split("Invalid parameter value", 1)[-1]
            raise UserError(f"parameter {parameter.name}: {_after_colon(reason)}") from None


def values(node: Any, table: Iterable[Parameter]) -> dict[str, Any]:
    """The present values of a table's parameters."""
    return {p.name: node.get_parameter(p.name).value for p in table}


def markdown(table: Iterable[Parameter]) -> str:
    """The table for the documentation."""
    lines = ["| parameter | default | values | may change | what |", "|---|---|---|---|---|"]
    for p in table:
        default = f"`{p.default!r}`".replace("'", '"')
        lines.append(
            f"| `{p.name}` | {default} | {_constraints(p)} | {p.change} | {p.description} |"
        )
    return "\n".join(lines) + "\n"


def _constraints(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(parameter.choices)
    if parameter.least is not None:
        return f"{parameter.least} to {parameter.most}"
    return ""


def _after_colon(text: str) -> str:
    """What rclpy says after naming parameter and value; all of it where that is not found."""
    head, marker, reason = text.partition("Reason: ")
    return " ".join((reason if marker else head).split()).strip()
