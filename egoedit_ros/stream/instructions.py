# SPDX-License-Identifier: Apache-2.0
"""Instructions as people give them: checked, and read from ``SECONDS:TEXT`` or a timeline file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egoedit_ros.errors import UserError
from egoedit_ros.stream.names import MAX_INSTRUCTION_CHARS

MAX_SEED = 2**32 - 1
_TIMED = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*:(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TimedInstruction:
    """An instruction at a second of the stream."""

    at: float
    text: str
    seed: int = 0
    reset: bool = False


def check_text(text: str) -> str:
    """The instruction without white space around it. Raises UserError if it cannot be one.

    rclpy puts U+FFFD where bytes were not UTF-8, so that character means a garbled instruction.
    """
    text = text.strip()
    if len(text) > MAX_INSTRUCTION_CHARS:
        raise UserError(
            f"instruction has {len(text)} characters; at most {MAX_INSTRUCTION_CHARS} are taken"
        )
    if "\ufffd" in text or "\x00" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise UserError("instruction is not UTF-8 text")
    return text


def check_seed(seed: int) -> int:
    """The seed, if it fits the message's uint32; UserError otherwise."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed!r} is not a whole number from 0 to {MAX_SEED}")
    return seed


def parse_timed(text: str) -> TimedInstruction:
    """``'2.5:make it blue'``, or a text alone for second 0. Raises UserError.

    Only digits and a point before the first colon are a time, so ``note: be quick`` is a text.
    """
    match = _TIMED.fullmatch(text)
    at, words = (float(match[1]), match[2]) if match else (0.0, text)
    return TimedInstruction(at, check_text(words))


def load_timeline(path: str | Path) -> list[TimedInstruction]:
    """Read a YAML list of ``{at: SECONDS, text: WORDS, seed: N, reset: true}``; by time.

    Raises UserError with the entry that is wrong.
    """
    import yaml

    path = Path(path)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read timeline {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"timeline {path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"timeline {path} is not YAML: {_one_line(error)}") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"timeline {path} is not a list of {{at: SECONDS, text: WORDS}}")
    timeline = [_entry(e, f"timeline {path}, entry {n}") for n, e in enumerate(entries, 1)]
    return sorted(timeline, key=lambda t: t.at)


def _entry(entry: Any, where: str) -> TimedInstruction:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not {{at: SECONDS, text: WORDS}}")
    unknown = set(entry) - {"at", "text", "seed", "reset"}
    if unknown:
        raise UserError(f"{where} has unknown keys: {', '.join(sorted(map(str, unknown)))}")
    at, text = entry.get("at", 0.0), entry.get("text")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < float("inf"):
        raise UserError(f"{where}: at is {at!r}, not a number of seconds from 0 up")
    if not isinstance(text, str):
        raise UserError(f"{where}: text is {text!r}, not words (put them in quotes)")
    reset = entry.get("reset", False)
    if not isinstance(reset, bool):
        raise UserError(f"{where}: reset is {reset!r}, not true or false")
    try:
        text, seed = check_text(text), check_seed(entry.get("seed", 0))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return TimedInstruction(float(at), text, seed, reset)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
