# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README.md that come from the code; ``--check`` only says if they differ."""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
sys.path.insert(0, str(README.parent))


def tables() -> dict[str, str]:
    """Marker name to table."""
    from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS, markdown
    from egoedit_ros.stream import topics

    return {"topics": topics.markdown(), "parameters": markdown(EDITOR_PARAMETERS)}


def fill(text: str) -> str:
    """``text`` with the tables put between their markers."""
    for name, table in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, mark, rest = text.partition(begin)
        old, stop, tail = rest.partition(end)
        if not mark or not stop:
            raise SystemExit(f"README.md lacks the markers of {name}")
        text = head + mark + table + stop + tail
    return text


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    after = fill(before)
    if "--check" in sys.argv:
        if after != before:
            raise SystemExit("README.md's tables are old; run: python tools/make_tables.py")
    else:
        README.write_text(after, encoding="utf-8")
