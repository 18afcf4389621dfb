# SPDX-License-Identifier: Apache-2.0
"""``egoedit doctor``: what works here, how to mend what does not; rescues broken bags."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from egoedit_ros.cli.checks import MACHINE_CHECKS, Check
from egoedit_ros.cli.checks_ros import ROS_CHECKS
from egoedit_ros.errors import UserError

MCAP_MAGIC = b"\x89MCAP0\r\n"
MARKS = {True: ("OK", "32"), False: ("FAIL", "31"), None: ("-", "33")}


def add_parser(subparsers) -> None:
    """Register ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="what works on this machine",
        description="Say what works on this machine and how to mend what does not. Ends with 1 "
        "if something that the main job needs does not work.",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="instead: check the CUDA parts against the CPU and measure every configuration "
        "(needs an NVIDIA GPU; minutes)",
    )
    parser.add_argument(
        "--recover",
        metavar="BAG",
        type=Path,
        help="instead: rescue what a killed recording had flushed into BAG_recovered",
    )


def run(args: argparse.Namespace) -> int:
    """Examine the machine, or rescue a bag. Returns 0, or 1 if something fails."""
    if args.recover is not None:
        target, count = recover(args.recover)
        print(f"{count} messages rescued into {target}")
        if args.json:
            _write_json(args.json, {"recovered": str(target), "messages": count})
        return 0
    if args.gpu:
        from egoedit_ros.runtime.gpu_check import run_gpu_check

        return run_gpu_check(args.json)
    results = []
    for check in MACHINE_CHECKS + ROS_CHECKS:
        results.append(check())
        print(line_of(results[-1], sys.stdout.isatty()), flush=True)
    failed = [result.name for result in results if result.ok is False]
    if failed:
        print(f"\n{len(failed)} of {len(results)} to mend: {', '.join(failed)}")
    else:
        print("\nall that the main job needs works")
    if args.json:
        _write_json(args.json, report_of(results))
    return 1 if failed else 0


def line_of(check: Check, colour: bool = False) -> str:
    """A result as text: a line, and one more with what to do."""
    word, code = MARKS[check.ok]
    mark = f"\033[{code}m{word:4}\033[0m" if colour else f"{word:4}"
    text = f"{mark}  {check.name:13}  {check.found}"
    return f"{text}\n{'':21}{check.mend}" if check.mend else text


def report_of(results: list[Check]) -> dict[str, object]:
    """What ``--json`` writes."""
    return {
        "ok": all(result.ok is not False for result in results),
        "host": {"system": platform.platform(), "cores": os.cpu_count()},
        "checks": [result.to_dict() for result in results],
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); choose another file") from None


def recover(bag: Path) -> tuple[Path, int]:
    """Rescue an MCAP bag without footer or metadata.yaml into ``BAG_recovered``.

    bag: a rosbag2 folder or its .mcap file; it is left as it is. Returns the new folder and the
    number of messages. Raises UserError if the bag is whole, nothing is left, or the target exists.
    """
    from egoedit_ros.data.bag_writer import rescue_bag

    file = _unfinished_file(bag)
    name = bag.resolve()
    target = name.with_name(f"{name.stem if bag.is_file() else name.name}_recovered")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists already; move it away first")
    shelter = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        folder = shelter / target.name
        folder.mkdir(parents=True)
        # A link: what is rescued takes its place, and the broken bag stays as it is.
        (folder / f"{target.name}.mcap").symlink_to(file.resolve())
        count = rescue_bag(folder)
        os.replace(folder, target)
    except UserError:
        raise UserError(
            f"{bag} holds no message that was flushed; nothing can be rescued"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror}); copy the bag to a folder you may write to"
        ) from None
    finally:
        shutil.rmtree(shelter, ignore_errors=True)
    return target, count


def _unfinished_file(bag: Path) -> Path:
    """The one .mcap file of a bag that is not whole. Raises UserError."""
    if not bag.exists():
        raise UserError(f"no bag at {bag}; check the path")
    files = sorted(bag.glob("*.mcap")) if bag.is_dir() else [bag]
    if not files:
        raise UserError(f"{bag} has no .mcap file; only MCAP bags can be rescued")
    if len(files) > 1:
        raise UserError(f"{bag} has {len(files)} .mcap files; name the one that was not finished")
    file = files[0]
    try:
        with file.open("rb") as stream:
            head = stream.read(len(MCAP_MAGIC))
            stream.seek(max(0, file.stat().st_size - len(MCAP_MAGIC)))
            tail = stream.read()
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
    if head != MCAP_MAGIC:
        raise UserError(f"{file} is not an MCAP file; only MCAP bags can be rescued")
    if tail == MCAP_MAGIC and (file.parent / "metadata.yaml").exists():
        raise UserError(f"{bag} is whole; there is nothing to rescue")
    return file
