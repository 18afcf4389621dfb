# SPDX-License-Identifier: Apache-2.0
"""Build the package's messages into the virtual environment this runs in, without a ROS machine.

Run it with the environment's own Python: ``.venv/bin/python tools/build_messages.py``. It

1. corrects the CMake files of the ROS wheels, which name the Python they were built with;
2. builds and installs the messages: libraries to ``<venv>/lib``, Python to
   ``<venv>/lib/egoedit_ros_msgs``;
3. links the generated Python into the source tree, where git ignores it. With the editable install
   that tools/setup_venv.py makes, ``egoedit_ros`` is then one package that is always the tree's
   present state: a module written a moment ago is importable, and so is ``egoedit_ros.msg``.

An editable install alone would hide the generated ``egoedit_ros.msg``; a copy (or a symlink per
file) in site-packages would go stale, and be hidden by the tree whenever Python runs inside it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path(sys.prefix)
BUILD = ROOT / "build" / "messages"
GENERATED = PREFIX / "lib" / "egoedit_ros_msgs"

_FOREIGN_NUMPY = re.compile(r"/opt/python/cp3[^;\"]*/site-packages/numpy/_core/include")
_FOREIGN_PYTHON = re.compile(r"/opt/python/cp3[^;\"/]*/include/python3\.\d+")


def correct_wheels(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Replace the wheel builder's folders in ``<prefix>/share/*/cmake``; count the files."""
    changed = 0
    for path in sorted(prefix.glob("share/*/cmake/*.cmake")):
        text = path.read_text()
        new = _FOREIGN_NUMPY.sub(lambda _: numpy_include, text)
        new = _FOREIGN_PYTHON.sub(lambda _: python_include, new)
        if new != text:
            path.write_text(new)
            changed += 1
    return changed


def build() -> None:
    """Configure, build and install the messages with CMake."""
    env = dict(os.environ, AMENT_PREFIX_PATH=str(PREFIX), CMAKE_PREFIX_PATH=str(PREFIX))
    # ament's helpers are Python programs found on the path; the compiler must not load the
    # libraries of the wheels.
    env["PATH"] = f"{PREFIX / 'bin'}{os.pathsep}{env.get('PATH', '')}"
    env.pop("LD_LIBRARY_PATH", None)
    env.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(BUILD)),
        f"-DCMAKE_INSTALL_PREFIX={PREFIX}",
        f"-DPython3_EXECUTABLE={PREFIX / 'bin' / 'python'}",
        f"-DPYTHON_INSTALL_DIR={GENERATED.relative_to(PREFIX)}",
        "-DEGOEDIT_MESSAGES_ONLY=ON",
        "-DBUILD_TESTING=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
        "-Wno-dev",
    ]
    jobs = str(max(1, min(4, os.cpu_count() or 1)))
    install = ["cmake", "--install", str(BUILD)]
    for command in (configure, ["cmake", "--build", str(BUILD), "--parallel", jobs], install):
        if command is install:
            # Messages that are gone must not stay importable.
            shutil.rmtree(GENERATED, ignore_errors=True)
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nfailed: {' '.join(command)}")


def link_into_tree() -> None:
    """Link the generated parts into ``egoedit_ros/``."""
    package = ROOT / "egoedit_ros"
    for stale in [package / "msg", *package.glob("*_s__rosidl_typesupport_*.so")]:
        if stale.is_symlink():
            stale.unlink()
    generated = GENERATED / "egoedit_ros"
    for part in [generated / "msg", *sorted(generated.glob("*_s__rosidl_typesupport_*.so"))]:
        (package / part.name).symlink_to(os.path.relpath(part, package))


def check() -> None:
    """Import a message in a fresh process, as a node would."""
    code = (
        "from egoedit_ros.msg import EditInstruction as M;"
        "M.__class__.__import_type_support__();"
        "assert M.__class__._TYPE_SUPPORT is not None"
    )
    env = {k: v for k, v in os.environ.items() if k != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    subprocess.run([str(PREFIX / "bin" / "python"), "-c", code], check=True, env=env, cwd=ROOT)


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("run this with the environment's Python: .venv/bin/python tools/build_messages.py")
    import numpy

    correct_wheels(PREFIX, sysconfig.get_paths()["include"], numpy.get_include())
    build()
    link_into_tree()
    check()


if __name__ == "__main__":
    main()
