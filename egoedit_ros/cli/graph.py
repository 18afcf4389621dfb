# SPDX-License-Identifier: Apache-2.0
"""The nodes of a replay as processes: started, watched, and stopped in order."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import egoedit_ros
from egoedit_ros.errors import UserError

EXIT_WRONG_INPUT = 2
# Ports of higher domains may be taken by outgoing connections.
HIGHEST_DOMAIN = 101
LAST_LINES = 40
PATIENCE_S = 15.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class NodeDied(Exception):
    """A node's process ended before its time. ``node``: which; ``code``: its exit code."""

    def __init__(self, node: str, code: int, message: str) -> None:
        super().__init__(message)
        self.node = node
        self.code = code


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen
    log: Path


class Graph:
    """Processes of ``python -m egoedit_ros.nodes.NAME_node``, each with its parameters and log.

    logs: folder for their parameter files and output. domain: see :func:`environment`. Use as a
    context manager: whatever happens, no process stays behind.
    """

    def __init__(self, logs: Path, domain: int | None = None) -> None:
        self.logs = logs
        self.environment = environment(domain)
        self._children: list[_Child] = []

    def start(self, node: str, parameters: dict[str, object]) -> None:
        """Start a node, such as ``editor``. Values travel in a file: no shell or ROS quoting."""
        import yaml

        file = self.logs / f"{node}.yaml"
        file.write_text(
            yaml.safe_dump({"/**": {"ros__parameters": parameters}}, allow_unicode=True),
            encoding="utf-8",
        )
        log = self.logs / f"{node}.log"
        command = [sys.executable, "-m", f"egoedit_ros.nodes.{node}_node"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--ros-args", "--params-file", str(file)],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                # A terminal's Ctrl-C goes to us alone; we stop them in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._children.append(_Child(node, process, log))

    def ended(self, node: str) -> bool:
        """Whether a node's process is over."""
        return self._child(node).process.poll() is not None

    def check(self, may_end: str = "") -> None:
        """Raise NodeDied if a node is gone, but for ``may_end`` after it did its work."""
        for child in self._children:
            code = child.process.poll()
            if code is None or (child.name == may_end and code == 0):
                continue
            raise NodeDied(child.name, code, self._obituary(child, code))

    def stop(self, node: str) -> None:
        """SIGINT, then after a while SIGTERM, then SIGKILL; returns when it is over."""
        process = self._child(node).process
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                return
            process.send_signal(number)
            try:
                process.wait(PATIENCE_S if number == signal.SIGINT else 5.0)
                return
            except subprocess.TimeoutExpired:
                continue

    def stop_all(self) -> None:
        """Stop what runs; the recorder hears the others' last words, so it goes before last."""
        order = {"replay": 0, "instruction": 1, "recorder": 2, "editor": 3}
        for child in sorted(self._children, key=lambda c: order.get(c.name, 9)):
            self.stop(child.name)

    def pids(self) -> dict[str, int]:
        """Process id by node."""
        return {child.name: child.process.pid for child in self._children}

    def _child(self, node: str) -> _Child:
        return next(child for child in self._children if child.name == node)

    def _obituary(self, child: _Child, code: int) -> str:
        said = _last_words(child.log)
        if code == EXIT_WRONG_INPUT and said:
            return said
        if code < 0:
            end = f"was killed by {signal.Signals(-code).name}"
        else:
            end = f"ended with exit code {code}"
        hint = {
            -signal.SIGKILL: "the machine may be out of memory: try a smaller --size",
        }.get(code, f"see {child.log}")
        return f"the {child.name} {end}; {hint}" + (f" (last said: {said})" if said else "")

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.process.poll() is None:
                self.stop(child.name)


def environment(domain: int | None = None) -> dict[str, str]:
    """This process's, for nodes in ROS domain ``domain`` and, unless set, on this machine only.

    None: a domain of their own, whatever ROS_DOMAIN_ID says. On a robot that is set to where the
    live graph is, whose pictures and clock would be mixed with these.
    """
    env = dict(os.environ)
    if domain is None:
        theirs = env.get("ROS_DOMAIN_ID")
        free = [n for n in range(1, HIGHEST_DOMAIN + 1) if str(n) != theirs]
        domain = random.SystemRandom().choice(free)
    env["ROS_DOMAIN_ID"] = str(domain)
    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    env["PYTHONUNBUFFERED"] = "1"
    # Beside this package there may be no installation: the children must find the same one.
    root = str(Path(egoedit_ros.__file__).parents[1])
    if root not in env.get("PYTHONPATH", "").split(os.pathsep):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    chosen = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    if not any(name in env for name in (*chosen, "FASTDDS_BUILTIN_TRANSPORTS")):
        if profile := large_image_profile():
            env[chosen[0]] = env[chosen[1]] = str(profile)
    return env


def large_image_profile() -> Path | None:
    """The Fast DDS profile for large images, in the source tree or where it is installed."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    folders = [Path(egoedit_ros.__file__).parents[1] / "config"]
    folders += [Path(prefix) / "share" / "egoedit_ros" / "config" for prefix in prefixes if prefix]
    for folder in folders:
        if found := sorted(folder.glob("fastdds*.xml")):
            return found[0]
    return None


def wait_for(condition, graph: Graph, seconds: float, what: str) -> None:
    """Wait until ``condition()``; raises NodeDied or, when time is up, UserError."""
    deadline = time.monotonic() + seconds
    while not condition():
        graph.check()
        if time.monotonic() > deadline:
            raise UserError(f"waited {seconds:g} s for {what}; see the logs in {graph.logs}")
        time.sleep(0.05)


def _die_with_parent() -> None:
    # Even a kill -9 of the command leaves no node running.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_words(log: Path) -> str:
    """The error a process left in its log: its last line that speaks of one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    last = telling[-1] if telling else ""
    return last.split("error: ", 1)[-1][:400]
