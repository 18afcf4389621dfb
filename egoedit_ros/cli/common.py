# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, instructions, outputs that are never half there, progress."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from egoedit_ros.errors import UserError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130


def add_instruction_options(parser: argparse.ArgumentParser) -> None:
    """``-i`` and ``--seed``."""
    parser.add_argument(
        "-i",
        "--instruction",
        dest="instructions",
        metavar="[SECONDS:]TEXT",
        action="append",
        required=True,
        help="what to change, in plain words, from that second on; repeatable; '' changes nothing",
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """INPUT and ``--topic``."""
    parser.add_argument("input", metavar="INPUT", type=Path, help="rosbag2 or video file")
    parser.add_argument("--topic", metavar="NAME", help="image topic of the bag, if it has several")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device``, ``--size``, ``--chunk-latents``, ``--nfe``, ``--output-size``."""
    parser.add_argument("--model", default="edge", metavar="edge|NAME|PATH", help="default: edge")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--size", metavar="WxH", help="the model works at this size; default: its own"
    )
    parser.add_argument(
        "--chunk-latents",
        type=positive_whole,
        metavar="N",
        help="latent frames to a chunk (4 pixel frames each); default: the model's own",
    )
    parser.add_argument(
        "--nfe", type=positive_whole, metavar="N", help="denoising steps; default: the model's own"
    )
    parser.add_argument(
        "--output-size",
        choices=("model", "camera"),
        help="size of the edited frames; camera: the camera's full picture, edited where needed",
    )


def add_switch_options(parser: argparse.ArgumentParser) -> None:
    """``--recache`` and ``--blend-chunks``: what a new instruction does."""
    parser.add_argument(
        "--recache",
        action="store_true",
        help="at a new instruction make the generated past anew under it; default: leave it",
    )
    parser.add_argument(
        "--blend-chunks",
        type=whole,
        default=0,
        metavar="N",
        help="go from one instruction to the next over N chunks; default: 0, at once",
    )


def add_runtime_option(parser: argparse.ArgumentParser) -> None:
    """``--runtime``, of the commands that run the model in their own process."""
    from egoedit_ros.stream.session import RUNTIMES

    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what computes: compile is torch.compile, slow to start; onnx is ONNX Runtime on the "
        "CPU; graphs and tensorrt are for CUDA; default: torch",
    )


def add_output_options(parser: argparse.ArgumentParser, what: str) -> None:
    """``-o``, ``--overwrite``, ``--json``."""
    parser.add_argument("-o", "--output", metavar="PATH", type=Path, required=True, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")


def positive_whole(text: str) -> int:
    """An argparse type: a whole number from 1 up."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def whole(text: str) -> int:
    """An argparse type: a whole number that fits 32 bits."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def positive_number(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def timeline(texts: list[str]) -> list:
    """``-i`` options as TimedInstructions by time. Raises UserError for two at the same second."""
    from egoedit_ros.stream.instructions import parse_timed

    timed = sorted((parse_timed(text) for text in texts), key=lambda one: one.at)
    for one, two in zip(timed, timed[1:], strict=False):
        if one.at == two.at:
            raise UserError(
                f"two instructions for second {one.at:g}; give the later one as -i SECONDS:TEXT"
            )
    return timed


def model_size(text: str | None) -> tuple[int, int] | None:
    """``--size`` as (width, height), None for the model's own."""
    from egoedit_ros.stream.types import parse_size

    return parse_size(text) if text else None


def check_output(
    output: Path, overwrite: bool, input: Path | None = None, kind: str = "file"
) -> None:
    """Raise UserError unless ``output`` may be made: not there (or to be replaced) and writable.

    kind: ``file``; ``bag``, a folder that is replaced as a whole, so only if a bag is in it; or
    ``folder``, of which only known entries are replaced. Never lets the input be its own output.
    """
    if input is not None and output.exists() and output.samefile(input):
        raise UserError(f"{output} is the input; choose another output")
    if input is not None and input.resolve().is_relative_to(output.resolve()):
        raise UserError(f"the input lies in {output}, which would be replaced; choose another")
    if output.is_dir() and kind == "file":
        raise UserError(f"{output} is a folder; name the file to write")
    if output.exists() and not output.is_dir() and kind != "file":
        raise UserError(f"{output} is a file; name a folder to write")
    empty = output.is_dir() and os.access(output, os.R_OK) and not any(output.iterdir())
    if output.exists() and not overwrite and not empty:
        raise UserError(f"{output} exists already; choose another name or add --overwrite")
    if kind == "bag" and output.is_dir() and not empty:
        if not any(output.glob("*.mcap")) and not any(output.glob("*.db3")):
            raise UserError(f"{output} is no bag, so it is not replaced; choose another name")
    # Into a folder that is there already, its own permission counts; else that of its parent.
    parent = output if kind == "folder" and output.exists() else output.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{parent} is a file, so {output} cannot be made; choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not writable; choose a folder you may write to")


@contextmanager
def shelter(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output`` to build it in; it is gone afterwards, come what may."""
    folder = output.parent / f".{output.name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write beside {output} ({error.strerror}); choose a folder you may write to"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Path, output: Path) -> None:
    """Move what was made to ``output``; the one before it goes only now."""
    if output.is_dir() and not output.is_symlink():
        shutil.rmtree(output)
    elif output.exists():
        output.unlink()
    os.replace(made, output)


class Progress:
    """A bar on stderr where that is a terminal, else a line every ten seconds.

    total: 0 where it is not known. Use as a context manager.
    """

    WIDTH = 30

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._start = time.monotonic()
        self._shown = 0.0 if sys.stderr.isatty() else self._start
        self._terminal = sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total are done."""
        self.done = done
        now = time.monotonic()
        if now - self._shown < (0.1 if self._terminal else 10.0):
            return
        self._shown = now
        self._show(note)

    def _show(self, note: str = "") -> None:
        rate = self.done / max(time.monotonic() - self._start, 1e-6)
        of = f"/{self.total}" if self.total else ""
        line = f"{self.what} {self.done}{of} ({rate:.1f}/s) {note}".rstrip()
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        share = min(1.0, self.done / self.total) if self.total else 0.0
        bar = ("█" * round(share * self.WIDTH)).ljust(self.WIDTH, "░")
        columns = shutil.get_terminal_size().columns - 1
        text = f"{bar} {line}"[:columns].ljust(columns)
        print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._show()
            print(file=sys.stderr, flush=True)


def table(rows: list[tuple[str, object]]) -> str:
    """Rows of (name, value) as aligned text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in rows)
