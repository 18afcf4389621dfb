# SPDX-License-Identifier: Apache-2.0
"""The VLM score: a vision-language judge looks at frames before and after (paper 4.4, EditVerse).

The judged frames, the three criteria of 0 to 3 and the mean of sums are the paper's; the wording
of the criteria is our own, so scores are comparable among runs of this tool with the same judge,
and to the paper's only roughly.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass, field

from egoedit_ros.bench.judge_client import ChatClient, JudgeError

CRITERIA = {
    "prompt_following": "vlm_prompt",
    "edit_quality": "vlm_quality",
    "background_consistency": "vlm_background",
}
HIGHEST = 3
ASKED_AGAIN = 3

RULES = """\
You grade video edits, one pair of frames at a time. The first picture is a frame of a video from \
a head-mounted camera before the edit, the second is the same moment after it. Grade only what \
can be seen, each criterion by itself, in whole numbers:

prompt_following: is what the instruction asks for in the second picture?
  0 nothing of it, or something else; 1 a trace of it; 2 most of it, with a detail missing or \
wrong; 3 all of it.
edit_quality: does the edited part look real?
  0 broken: smeared, torn or without recognisable shape; 1 clear flaws at first glance; \
2 small flaws on a second look; 3 lighting, edges, perspective and the way hands hold it are right.
background_consistency: is everything that the instruction does not mention as it was, hands above \
all?
  0 another scene; 1 much has changed, or hands are damaged; 2 small changes; 3 nothing but the \
edit has changed. Where the instruction changes the whole picture, grade whether layout, objects \
and motion are still those of the first picture.

Answer with one JSON object and nothing else: {"prompt_following": n, "edit_quality": n, \
"background_consistency": n, "reason": "one short sentence"}"""
AGAIN = (
    "The last answer could not be read. Answer with the JSON object only; each grade is 0, 1, 2 "
    "or 3."
)
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "grades",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                **{name: {"type": "integer", "enum": [0, 1, 2, 3]} for name in CRITERIA},
                "reason": {"type": "string"},
            },
            "required": [*CRITERIA, "reason"],
            "additionalProperties": False,
        },
    },
}


@dataclass(slots=True)
class Verdict:
    """Mean grades over the frames judged (None where there are none), and what went wrong."""

    values: dict[str, float | None]
    judged: int
    asked: int
    problems: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    final: bool = False


def judged_frames(count: int) -> list[int]:
    """Every n//3-th frame (paper, App. D): 3 of them, sometimes a few more."""
    return list(range(0, count, max(1, count // 3)))


def request_body(model: str, instruction: str, before: bytes, after: bytes, again: bool) -> dict:
    """The chat request for one pair of JPEG pictures."""
    words = f"Instruction: {instruction}"
    content: list[dict] = [{"type": "text", "text": words}]
    for title, jpeg in (("Before:", before), ("After:", after)):
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        content += [
            {"type": "text", "text": title},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    if again:
        content.append({"type": "text", "text": AGAIN})
    return {
        "model": model,
        "temperature": 0,
        "max_tokens": 300,
        "messages": [
            {"role": "system", "content": RULES},
            {"role": "user", "content": content},
        ],
        "response_format": SCHEMA,
    }


def read_grades(text: str) -> dict:
    """``{criterion: 0..3, 'reason': str}`` out of an answer. Raises ValueError."""
    # A model that thinks aloud puts its answer last.
    for found in reversed(list(re.finditer(r"\{[^{}]*\}", text, re.DOTALL))):
        try:
            answer = json.loads(found.group())
        except ValueError:
            continue
        if not all(name in answer for name in CRITERIA):
            continue
        grades = {}
        for name in CRITERIA:
            value = answer[name]
            whole = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not whole or not math.isfinite(value) or value != int(value):
                raise ValueError(f"{name} is {value!r}")
            if not 0 <= value <= HIGHEST:
                raise ValueError(f"{name} is {value!r}")
            grades[name] = int(value)
        return grades | {"reason": str(answer.get("reason", ""))[:300]}
    raise ValueError(f"no grades in {text[:80]!r}")


def judge_item(client: ChatClient, instruction: str, pairs: list[tuple[bytes, bytes]]) -> Verdict:
    """Grade the JPEG pairs of an item. Never raises for what the server does."""
    grades: list[dict] = []
    problems: list[str] = []
    final = False
    for number, (before, after) in enumerate(pairs):
        try:
            grades.append(_grade(client, instruction, before, after))
        except JudgeError as error:
            problems.append(f"pair {number}: {error}")
            if error.final:
                final = True
                break
    values: dict[str, float | None] = dict.fromkeys(("vlm", *CRITERIA.values()))
    # Broken off is not judged: an item's score must not depend on when the budget ran out.
    if grades and not final:
        for name, metric in CRITERIA.items():
            values[metric] = sum(g[name] for g in grades) / len(grades)
        values["vlm"] = sum(g[name] for g in grades for name in CRITERIA) / len(grades)
    reasons = [g["reason"] for g in grades]
    return Verdict(values, len(grades), len(pairs), problems, reasons, final)


def _grade(client: ChatClient, instruction: str, before: bytes, after: bytes) -> dict:
    said = ""
    for attempt in range(ASKED_AGAIN):
        body = request_body(client.settings.model, instruction, before, after, attempt > 0)
        try:
            return client.ask(body, read_grades, attempt)
        except ValueError as error:
            said = str(error)
    raise JudgeError(f"{ASKED_AGAIN} answers made no sense; the last: {said}")
