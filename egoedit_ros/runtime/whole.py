# SPDX-License-Identifier: Apache-2.0
"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from egoedit_ros.errors import UserError

T = TypeVar("T")


def check_folder(folder: Path, replace: bool, marker: str) -> None:
    """Raise UserError unless ``folder`` may be made, or replaced: then it must hold ``marker``."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder to write")
    if folder.is_dir() and any(folder.iterdir()):
        if not replace:
            raise UserError(f"{folder} exists already; choose another name or add --overwrite")
        if not (folder / marker).is_file():
            raise UserError(f"{folder} holds no {marker}, so it is not replaced; choose another")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{parent} is a file, so {folder} cannot be made; choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not writable; choose a folder you may write to")


def write_whole(folder: Path, make: Callable[[Path], T], replace: bool = False) -> T:
    """Call ``make`` with a hidden folder beside ``folder`` and put that in its place if all went
    well. Nothing is left of it otherwise. Raises UserError where it cannot be written."""
    folder = folder.absolute()
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write beside {folder} ({error.strerror}); choose a folder you may write to"
        ) from None
    try:
        result = make(part)
        if folder.is_dir() and (replace or not any(folder.iterdir())):
            shutil.rmtree(folder)
        os.replace(part, folder)
        return result
    finally:
        shutil.rmtree(part, ignore_errors=True)
