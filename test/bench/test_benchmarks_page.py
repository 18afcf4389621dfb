# SPDX-License-Identifier: Apache-2.0
"""The documentation's table of figures is the code's."""

from __future__ import annotations

from pathlib import Path

from egoedit_ros.bench.metrics import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def test_the_table_of_figures_is_that_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert registry.markdown() in text, "run: python tools/check_instrument.py --docs"
