# SPDX-License-Identifier: Apache-2.0
"""Instructions as people write them, and what is wrong with them in one line."""

import pytest

from egoedit_ros.errors import UserError
from egoedit_ros.stream.instructions import TimedInstruction, check_text, load_timeline, parse_timed


@pytest.mark.parametrize(
    "given, at, text",
    [
        ("make it blue", 0.0, "make it blue"),
        ("2.5:make it blue", 2.5, "make it blue"),
        ("3: ", 3.0, ""),
        (".5:a: b", 0.5, "a: b"),
        ("note: be quick", 0.0, "note: be quick"),
        ("-1:back", 0.0, "-1:back"),
    ],
)
def test_seconds_and_text(given, at, text):
    assert parse_timed(given) == TimedInstruction(at, text)


def test_over_long_and_garbled_texts_are_refused():
    assert check_text(" x" * 1000) == ("x " * 1000).strip()
    for bad in ("x" * 2001, "caf\ufffd", "a\x00b", "\ud800"):
        with pytest.raises(UserError):
            check_text(bad)


def test_timeline_file(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("- {at: 2, text: make it red, seed: 4, reset: true}\n- {text: first}\n")
    assert load_timeline(path) == [
        TimedInstruction(0.0, "first"),
        TimedInstruction(2.0, "make it red", 4, True),
    ]


@pytest.mark.parametrize(
    "content",
    ["", "a: b", "- x", "- {at: .nan, text: x}", "- {at: -1, text: x}", "- {at: 1}", "- [",
     "- {at: 1, text: x, colour: red}", "- {at: 1, text: x, seed: -1}", b"- \xff"],
)  # fmt: skip
def test_wrong_timeline_files_are_told_in_one_line(tmp_path, content):
    path = tmp_path / "t.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load_timeline(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_missing_timeline_file(tmp_path):
    with pytest.raises(UserError, match="cannot read timeline"):
        load_timeline(tmp_path / "none.yaml")
