# SPDX-License-Identifier: Apache-2.0
"""Files of named tensors, read one tensor at a time: safetensors (whole or sharded) and ``.pt``.

A ``.pt`` file is read with ``weights_only``: what would run code is refused.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from egoedit_ros.errors import UserError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
# Where a training run keeps the weights to use, best first (Self Forcing: the averaged ones).
INSIDE = ("generator_ema", "generator", "model_ema", "ema", "model", "state_dict")


@dataclass(frozen=True, slots=True)
class TensorFile:
    """shapes: of all tensors by name; read: one tensor, on the CPU, in a float type."""

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


def read_json(path: Path) -> dict:
    """A JSON file that holds a table. Raises UserError when it does not."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table; copy it again")
    return values


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a file, or of the one set of weights in a folder. Raises UserError."""
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}; give a file or a folder that is there")
    if path.suffix == ".safetensors":
        return _safetensors([path])
    if path.suffix in PICKLES:
        return _pickle(path)
    raise UserError(f"{path} is no .safetensors and no .pt file; give one of these")


def _open_folder(folder: Path) -> TensorFile:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) == 1:
        shards = sorted(set(read_json(indexes[0]).get("weight_map", {}).values()))
        if any(Path(name).name != name for name in shards):
            raise UserError(f"{indexes[0]} names files outside of its folder; copy it again")
        lost = [name for name in shards if not (folder / name).is_file()]
        if lost or not shards:
            raise UserError(
                f"{len(lost)} of {len(shards)} files named in {indexes[0]} are not there "
                f"({', '.join(lost[:2])}); copy the whole folder"
            )
        return _safetensors([folder / name for name in shards])
    for pattern in ("*.safetensors", "*.pt", "*.pth"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return open_tensors(found[0])
        if found:
            raise UserError(f"{folder} holds {len(found)} {pattern} files; name the one to use")
    raise UserError(f"no weights in {folder}; it must hold a .safetensors or .pt file")


def _safetensors(paths: list[Path]) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, tuple[Path, object]] = {}
    for path in paths:
        try:
            file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118 (no iterator there)
                shapes[name] = tuple(file.get_slice(name).get_shape())
                where[name] = (path, file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a whole safetensors file ({error}); copy it again or convert it"
            ) from None

    def read(name: str) -> Tensor:
        path, file = where[name]
        return _checked(file.get_tensor(name), name, path)

    return TensorFile(shapes, read)


def _pickle(path: Path) -> TensorFile:
    def load(mmap: bool):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            values = load(mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            values = load(mmap=False)  # written by a torch before 1.6
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, which might be code; have it converted to "
            "safetensors where you trust it"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{path} is not a whole .pt file ({first}); copy it again") from None
    while isinstance(values, dict):
        inner = next((k for k in INSIDE if isinstance(values.get(k), dict)), None)
        if inner is None:
            break
        values = values[inner]
    if not isinstance(values, dict) or not any(isinstance(v, Tensor) for v in values.values()):
        raise UserError(f"{path} holds no table of tensors; give a model's checkpoint")
    tensors = {str(k): v for k, v in values.items() if isinstance(v, Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorFile(shapes, lambda name: _checked(tensors[name], name, path))


def _checked(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{path} holds {name} as {kind}; use a checkpoint in bfloat16, float16 or float32"
        )
    return tensor
