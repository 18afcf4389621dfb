# SPDX-License-Identifier: Apache-2.0
"""``egoedit``: one command, a module to each subcommand, imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys

from egoedit_ros.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_INPUT
from egoedit_ros.errors import UserError

COMMANDS = {
    "replay": "edit a bag or a video through the ROS graph, and measure it",
    "edit": "edit a video or a bag file to file, without the graph",
    "bench": "the benchmarks",
    "train": "the training stages",
    "data": "simulate pairs, import tables, make a bag from a video",
    "plan": "predict fps, latency and memory of a model on a GPU",
    "export": "write ONNX files and TensorRT engines",
    "doctor": "say what works on this machine and how to mend what does not",
}
# What is left when a name is no module yet would only be an error message to the user.
PACKAGE = "egoedit_ros.cli"


def available() -> list[str]:
    """Subcommands whose modules are there."""
    return [name for name in COMMANDS if importlib.util.find_spec(f"{PACKAGE}.{name}")]


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of ``command`` only (None: of none)."""
    parser = argparse.ArgumentParser(
        prog="egoedit",
        description="Change what a head camera sees, live, as told in plain words.",
        epilog="'egoedit COMMAND --help' says more.",
    )
    parser.add_argument("--version", action="version", version=f"egoedit {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in available():
        if name == command:
            # A module's own parser carries its help; the list's line is the one above.
            importlib.import_module(f"{PACKAGE}.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=COMMANDS[name], add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``egoedit``. Returns 0, 1 (failed), 2 (wrong input) or 130 (interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    command = next((word for word in argv if not word.startswith("-")), None)
    args = build_parser(command).parse_args(argv)
    # A killed command tidies up as an interrupted one does.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return int(importlib.import_module(f"{PACKAGE}.{args.command}").run(args) or 0)
    except UserError as error:
        return _fail(str(error), EXIT_WRONG_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if "EGOEDIT_DEBUG" in os.environ:
            raise
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; free space or mend it", EXIT_FAILED)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came.

    A KeyboardInterrupt itself, raised while some exec() of source text runs, makes Python die of
    SIGINT in the end, even though it was caught; a subclass does not.
    """


def _interrupt(*_: object) -> None:
    raise Interrupted


def _fail(message: str, code: int) -> int:
    print(f"egoedit: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("egoedit_ros")
    except PackageNotFoundError:
        return "(source tree)"


if __name__ == "__main__":
    sys.exit(main())
