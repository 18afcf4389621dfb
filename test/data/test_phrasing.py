# SPDX-License-Identifier: Apache-2.0
"""Instructions put together from parts: they say what is wanted, and none is one that evaluates."""

import re

import numpy as np
import pytest

from egoedit_ros.data.sim.phrasing import phrase
from egoedit_ros.data.sim.vocabulary import (
    _RECOLOUR_HELD_OUT,
    _REMOVE_HELD_OUT,
    _REPLACE_HELD_OUT,
    SYNONYMS,
)
from egoedit_ros.train.latents import SIDES

HELD_OUT = _RECOLOUR_HELD_OUT + _REPLACE_HELD_OUT + _REMOVE_HELD_OUT
TELLING = "could you|appear|switch|same shape|suit|imagine|were|convert|pretend|wipe|view"


@pytest.mark.parametrize(
    ("task", "more"),
    [("recolour", (None, "pink")), ("replace", ("mug", "pink")), ("remove", (None, None))],
)
@pytest.mark.parametrize("kind", ["book", "cactus"])
def test_what_is_wanted_is_said_in_many_ways(task, more, kind):
    rng = np.random.default_rng(0)
    texts = [phrase(rng, task, kind, "orange", *more) for _ in range(500)]
    assert len(set(texts)) > 300
    for text in texts:
        low = text.lower()
        assert any(noun.split()[0] in low for noun in SYNONYMS[kind]), text
        assert "{" not in text and not SIDES.search(text), text
        assert not re.search(r"\ba orange", low), text
        if more[0]:
            assert "mug" in low or "cup" in low, text
        if more[1]:
            assert "pink" in low, text


def test_none_is_kept_for_evaluation():
    patterns = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(t.rstrip("?"))), re.I) for t in HELD_OUT
    ]
    assert patterns[0].search("Could you have the mug appear blue?")
    rng = np.random.default_rng(1)
    for task, more in (("recolour", (None, "red")), ("replace", ("can", "red")), ("remove", ())):
        for _ in range(1000):
            text = phrase(rng, task, "ball", "blue", *more)
            assert not any(p.search(text) for p in patterns), text
            assert not re.search(rf"\b({TELLING})\b", text, re.I), text
