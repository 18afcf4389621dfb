# SPDX-License-Identifier: Apache-2.0
"""Make requirements.lock from requirements.in: ``python tools/make_lock.py [--upgrade]``.

Needs the program ``uv`` (not part of the environment). Every package, also those that come in as
dependencies, is written with its exact version and the hashes of all its files, so that the lock
installs with ``--no-deps``. torch alone has no hash: its CPU build is the same version from more
than one source, and must be the build that brings no CUDA. Versions that the present lock has are
kept unless ``--upgrade`` is given. Both Python versions are resolved and must agree.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "requirements.in"
LOCK = ROOT / "requirements.lock"
MARK = "[no-deps]"
HEAD = """# SPDX-License-Identifier: Apache-2.0
# Every package of .venv, for Linux x86-64 and Python 3.11 or 3.12; a full list, so that it installs
# with --no-deps. Made by tools/make_lock.py from requirements.in; installed by tools/setup_venv.py,
# which takes the line without a hash (torch, the CPU build) by itself, as pip wants all or none.
"""
# What the CUDA build of torch would add; the CPU build is installed.
CUDA_ONLY = re.compile(r"^(nvidia-|cuda-|triton\b)")


def compile_list(lines: list[str], python: str, *options: str) -> list[str]:
    """Resolve requirement lines with uv; one string per package, its hashes included."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.txt"), Path(folder, "out.txt")
        if "--upgrade" not in options and LOCK.exists():
            out.write_text(re.sub(r"(?m)^torch==.*\n", "", LOCK.read_text()))
        source.write_text("\n".join(lines) + "\n")
        command = ["uv", "pip", "compile", str(source), "-o", str(out), "--python-version", python]
        command += ["--python-platform", "x86_64-manylinux_2_28", "--generate-hashes", "--quiet"]
        command += ["--no-header", "--no-annotate", *options]
        if subprocess.run(command).returncode:
            sys.exit("uv could not resolve requirements.in (message above)")
        text = out.read_text()
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    return [b.rstrip() for b in blocks if "==" in b and not CUDA_ONLY.match(b)]


def versions(blocks: list[str]) -> list[str]:
    return [block.split()[0] for block in blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    options = ["--upgrade"] if parser.parse_args().upgrade else []
    full, _, bare = SOURCE.read_text().partition(MARK)
    full_lines = re.sub(r"(torch==[\d.]+)\+cpu", r"\1", full).splitlines()
    torch = re.search(r"(?m)^torch==\S+", full).group()
    bare_lines = bare.splitlines()[1:]
    resolved = {}
    for python in ("3.11", "3.12"):
        blocks = compile_list(full_lines, python, *options)
        blocks += compile_list(bare_lines, python, "--no-deps", *options)
        resolved[python] = sorted(b for b in blocks if not b.startswith("torch=="))
    if versions(resolved["3.11"]) != versions(resolved["3.12"]):
        difference = set(versions(resolved["3.11"])) ^ set(versions(resolved["3.12"]))
        sys.exit(f"the two Python versions differ, add markers: {sorted(difference)}")
    LOCK.write_text(HEAD + "\n".join([torch, *resolved["3.11"]]) + "\n")
    print(f"{LOCK.name}: {len(resolved['3.11']) + 1} packages")


if __name__ == "__main__":
    main()
