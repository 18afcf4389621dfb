# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: whole or not at all, of one process or of many; and what they belong to.

Nothing is unpickled: one process writes a safetensors file, many write one each through
``torch.distributed.checkpoint`` (its safetensors storage) into a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from egoedit_ros.errors import UserError

# How long and how closely a run is watched may change between its parts; what it learns may not.
FREE = {
    "output", "steps", "minutes", "log_every", "save_every", "sample_every", "tensorboard", "watch",
    "device", "recompute", "samples", "workers",
}  # fmt: skip
META = "state.json"


def write_together(
    files: Sequence[tuple[Path, dict[str, Tensor], dict[str, str]]],
) -> None:
    """Write all of (path, tensors, metadata) beside, then rename: all new, or all as before.

    Raises UserError where they cannot be written (a full disk); the old files stay.
    """
    parts = [path.with_suffix(".part") for path, *_ in files]
    try:
        for part, (_, tensors, meta) in zip(parts, files, strict=True):
            save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata=meta)
            part.chmod(0o644)
    except (OSError, SafetensorError) as error:
        for part in parts:
            part.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {files[0][0]} ({error}); the last checkpoint is whole: free space and "
            "run the same command again, it goes on from there"
        ) from None
    for part, (path, *_) in zip(parts, files, strict=True):
        part.replace(path)


def read_meta(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises UserError when it is not one of ours."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole checkpoint ({error}); delete it to start the stage anew"
        ) from None


def finish_renaming(checkpoint: Path, state: Path) -> None:
    """Mend a stop between the two renames of :func:`write_together`: checkpoint, then state."""
    part = state.with_suffix(".part")
    if not part.exists() or not checkpoint.exists():
        return
    try:
        with safe_open(part, "pt") as file:
            written = (file.metadata() or {}).get("step")
    except (SafetensorError, OSError, ValueError):
        return  # cut short while it was written: the state before it is good
    if written == read_meta(checkpoint).get("step"):
        part.replace(state)


def differences(stored: str | None, now: dict) -> list[str]:
    """What of the settings (JSON) a checkpoint was made with is otherwise now, in words.

    Names that only one side knows are left out: they came or went with a version.
    """
    if stored is None:
        return []
    before = json.loads(stored)
    now = json.loads(json.dumps(now, default=str))
    found = []
    for name in sorted(before.keys() & now.keys() - FREE):
        old, new = before[name], now[name]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = differences(json.dumps(old), new)
            found += [f"{name}.{line}" for line in inner]
        else:
            found.append(f"{name} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- many processes ----------------------------------------------------------


def save_shards(folder: Path, tensors: dict[str, Tensor], meta: dict[str, str], rank: int) -> None:
    """Each process's own part of ``tensors`` (DTensors); ``folder`` is whole or as before.

    Collective: every process calls it, and every one learns when one could not write.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    part, old = _beside(folder)
    if rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    except Exception as error:  # torch gathers the processes' errors into one of its own
        if rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        reason = (str(error).splitlines() or [""])[-1][:160]
        raise UserError(
            f"cannot write {folder} ({reason}); the last checkpoint is whole: free space and run "
            "the same command again, it goes on from there"
        ) from None
    if rank == 0:
        (part / META).write_text(json.dumps(meta))
        if folder.exists():
            # A stop may have left one, and no folder takes the place of one that holds something.
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def finish_renaming_shards(folder: Path) -> None:
    """Mend a stop between the two renames of :func:`save_shards`; one process calls it, before any
    looks for ``folder``: what was written last comes to its place, or what was there before."""
    if folder.exists():
        return
    for left in _beside(folder):
        try:
            read_shards_meta(left)
        except UserError:
            continue  # not there, or cut short while it was written
        left.replace(folder)
        return


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written, and where the one before it waits. Not the names that
    :func:`write_together` gives: a file left there would be in the way."""
    return folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")


def read_shards_meta(folder: Path) -> dict[str, str]:
    """The metadata of what :func:`save_shards` wrote."""
    try:
        return json.loads((folder / META).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is no whole checkpoint ({error}); delete it to start the stage anew"
        ) from None


def load_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill ``tensors`` in place; another number of processes may have written them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie on many processes, as one on the CPU. Collective."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().to("cpu", non_blocking=False)


def whole_on_first(tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """All of ``tensors`` by :func:`whole` on rank 0, nothing on the others: as many copies of a
    network as a host has GPUs would not fit its memory. Collective."""
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if rank == 0:
            kept[name] = value
    return kept
