# SPDX-License-Identifier: Apache-2.0
"""Set up ``.venv`` with everything the project uses: ``python3 tools/setup_venv.py``.

Needs Linux x86-64, Python 3.11 or 3.12 with venv and headers, a C++ compiler and CMake; nothing of
ROS. Standard library only. Runs in a blink when all is in place; after a change of the lock file,
the messages or the package's metadata it redoes what they touch. What is missing on the machine is
named together with the command that installs it.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHONS = ((3, 11), (3, 12))
# What a sourced ROS installation or another environment's Python would leak into ours.
LEAKS = (
    *("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME"),
    *("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "VIRTUAL_ENV"),
)


class SetupError(Exception):
    """Something is missing; the message says what installs it."""


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LEAKS}


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def install_hint(packages: str) -> str:
    sudo = "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install -y {packages}"


# --- the machine ---------------------------------------------------------------------------------


def find_python(wanted: str | None) -> str:
    """Path of a Python 3.11 or 3.12: the one asked for, this one, or one on the path."""
    if wanted:
        names = [wanted]
    else:
        names = [sys.executable, "python3", "python3.12", "python3.11"]
    for name in names:
        path = shutil.which(name)
        if path and python_version(path) in PYTHONS:
            return path
    found = f"{wanted} is not one" if wanted else f"python3 is {platform.python_version()}"
    raise SetupError(
        f"Python 3.11 or 3.12 is needed ({found}): {install_hint('python3.12 python3.12-venv')}"
        " (or python3.11), or name one with PYTHON=/path/to/python3.12"
    )


def python_version(path: str) -> tuple[int, ...] | None:
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run(
        [path, "-c", code], capture_output=True, text=True, env=clean_environment()
    )
    return tuple(int(n) for n in done.stdout.split()) if done.returncode == 0 else None


def check_machine(python: str) -> None:
    """Raise SetupError naming every missing system package in one command."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise SetupError("the ROS wheels are for Linux x86-64; elsewhere use a ROS installation")
    version = "python" + ".".join(str(n) for n in python_version(python) or ())
    code = (
        "import os, sysconfig; import venv, ensurepip;"
        "print(os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    missing = []
    if done.returncode:
        missing.append(f"{version}-venv")
    if done.stdout.strip() != "True":
        missing.append(f"{version}-dev")
    if not (shutil.which("g++") or shutil.which("c++")):
        missing.append("g++")
    if not shutil.which("cmake"):
        missing.append("cmake")
    if not shutil.which("make"):
        missing.append("make")
    if missing:
        raise SetupError(f"missing: {', '.join(missing)}. {install_hint(' '.join(missing))}")


def warn_of_egl() -> None:
    """The simulator alone needs EGL: say so, go on."""
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        say("no EGL here: the simulator and its tests will not run. "
            + install_hint("libegl1 libgl1-mesa-dri"))  # fmt: skip


# --- the steps -----------------------------------------------------------------------------------


def fingerprint(*parts: object) -> str:
    """Hash of files (by content) and strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Stamps:
    """What was set up, in ``<venv>/egoedit_setup.json``: {step: fingerprint}."""

    def __init__(self, venv: Path) -> None:
        self.path = venv / "egoedit_setup.json"
        try:
            self.done = json.loads(self.path.read_text())
        except (OSError, ValueError):
            self.done = {}

    def fresh(self, step: str, mark: str) -> bool:
        return self.done.get(step) == mark

    def write(self, step: str, mark: str) -> None:
        self.done[step] = mark
        self.path.write_text(json.dumps(self.done, indent=2) + "\n")


def run(command: list[str], what: str) -> None:
    """Run quietly; on failure show the last lines and stop."""
    done = subprocess.run(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "WARNING: Location" not in line]
        raise SetupError("\n".join([*lines[-25:], f"{what} failed (messages above)"]))


def split_lock(text: str) -> tuple[str, str, str]:
    """The lock in the three parts that pip wants apart: setuptools, hashed, without a hash."""
    blocks: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            blocks[-1] += "\n" + line
        else:
            blocks.append(line)
    first = [b for b in blocks if b.startswith("setuptools==")]
    bare = [b for b in blocks if "--hash=" not in b]
    hashed = [b for b in blocks if "--hash=" in b and b not in first]
    return "\n".join(first), "\n".join(hashed), "\n".join(bare)


def install_packages(python: Path) -> None:
    """Install the lock file: exactly it, nothing that packages ask for beside it."""
    first, hashed, bare = split_lock(LOCK.read_text())
    # One package comes as source: it is built with the setuptools of the lock.
    base = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    base += ["--disable-pip-version-check", "--no-build-isolation"]
    for part, what in ((first, "setuptools"), (bare, bare.strip()), (hashed, "the other packages")):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(part + "\n")
            file.flush()
            try:
                run([*base, "-r", file.name], f"installing {what}")
            except SetupError as error:
                if part is not bare:
                    raise
                raise SetupError(
                    f"{error}\nThe CPU build of torch is not in the package index that pip uses "
                    "here. PyTorch keeps these builds in an index of its own (its install page "
                    "names it: Linux, Pip, CPU): set PIP_EXTRA_INDEX_URL to it, or "
                    "PIP_FIND_LINKS to a folder with the wheel, and run this again."
                ) from None


def marks_of(venv: Path) -> dict[str, str]:
    """What each step depends on, as a fingerprint: files, and places that end up in files."""
    messages = [ROOT / "CMakeLists.txt", ROOT / "package.xml", *sorted(ROOT.glob("msg/*.msg"))]
    messages.append(ROOT / "tools" / "build_messages.py")
    places = (str(venv), str(ROOT))
    return {
        "packages": fingerprint(LOCK, places[0]),
        "project": fingerprint(*places, ROOT / "pyproject.toml", ROOT / "setup.py"),
        "messages": fingerprint(LOCK, *places, *messages),
    }


def set_up(venv: Path, wanted_python: str | None) -> None:
    """Bring ``venv`` up to date; raise SetupError with what to do where that fails."""
    python = venv / "bin" / "python"
    stamps = Stamps(venv)
    marks = marks_of(venv)
    links = (ROOT / "egoedit_ros" / "msg" / "__init__.py").exists()
    alive = python.exists() and all(stamps.fresh(step, mark) for step, mark in marks.items())
    if alive and links:
        return

    started = time.monotonic()
    base_python = find_python(wanted_python)
    check_machine(base_python)
    warn_of_egl()
    # An environment that was moved or copied has its old place in all its scripts.
    moved = stamps.done.get("place", str(venv)) != str(venv)
    if moved or not python.exists():
        say(f"making {venv.name} with {base_python}")
        run([base_python, "-m", "venv", "--clear", str(venv)], "making the virtual environment")
        shutil.rmtree(ROOT / "build" / "messages", ignore_errors=True)
        stamps = Stamps(venv)
    stamps.write("place", str(venv))
    if not stamps.fresh("packages", marks["packages"]):
        say("installing the packages of requirements.lock (some 3 GB on disk; minutes)")
        install_packages(python)
        stamps.write("packages", marks["packages"])
    if not stamps.fresh("project", marks["project"]):
        say("installing egoedit_ros (editable)")
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--no-build-isolation", "--editable", str(ROOT)]
        run(command, "installing egoedit_ros")
        stamps.write("project", marks["project"])
    if not stamps.fresh("messages", marks["messages"]) or not links:
        say("building the ROS messages")
        run([str(python), str(ROOT / "tools/build_messages.py")], "building the ROS messages")
        stamps.write("messages", marks["messages"])
    say(f"ready: {venv.name} ({time.monotonic() - started:.0f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where (default: .venv)")
    parser.add_argument("--python", default=os.environ.get("PYTHON"), help="the Python to use")
    args = parser.parse_args()
    venv = args.venv.absolute()
    venv.parent.mkdir(parents=True, exist_ok=True)
    # Two makes at once take turns.
    with open(venv.parent / f".{venv.name.lstrip('.')}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            set_up(venv, args.python or None)
        except SetupError as error:
            print(f"[setup] {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
