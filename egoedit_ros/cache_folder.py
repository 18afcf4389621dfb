# SPDX-License-Identifier: Apache-2.0
"""Where the package keeps what it can make again: text embeddings, exported files."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder ``name`` in ``$EGOEDIT_CACHE`` or in ``egoedit_ros`` of the user's cache; it need
    not be there yet."""
    own = os.environ.get("EGOEDIT_CACHE")
    if own:
        return Path(own) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "egoedit_ros" / name
