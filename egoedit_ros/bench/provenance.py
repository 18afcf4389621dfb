# SPDX-License-Identifier: Apache-2.0
"""What every benchmark file carries: host, versions, git revision, command, configuration."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from egoedit_ros.bench.report import host, versions


def git_revision() -> str | None:
    """The revision of the source tree, with ``+`` where it was changed; None outside of one."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run(
            [git, *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    revision = ask("rev-parse", "HEAD")
    if not revision:
        return None
    return revision + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")


def provenance(config: dict, input_sha256: str | None) -> dict:
    """The keys that all benchmark files share."""
    return {
        "host": host(),
        "versions": versions(),
        "git_revision": git_revision(),
        "command": shlex.join(["egoedit", *sys.argv[1:]]),
        "config": config,
        "input_sha256": input_sha256,
    }
