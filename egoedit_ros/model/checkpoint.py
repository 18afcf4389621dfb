# SPDX-License-Identifier: Apache-2.0
"""Weights on disk: a folder with ``config.json`` and safetensors files. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import build_autoencoder
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.detail import DetailNet
from egoedit_ros.model.memory import require_memory
from egoedit_ros.model.packed import pack, unpack
from egoedit_ros.model.tensor_files import FLOATS
from egoedit_ros.model.transformer import Transformer

PARTS = ("transformer", "autoencoder", "detail")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises UserError when it is missing, cut short or another format."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no weights at {path}; give a folder that egoedit train wrote")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); copy it again or convert it"
        ) from None


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    """Put ``tensors`` into ``module``; names and shapes must all fit, values must be finite.

    assign: the tensors become the module's own, without a copy (for one on the meta device).
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - tensors.keys())
    left = sorted(tensors.keys() - wanted.keys())
    other = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    if missing or left or other:
        parts = [
            f"{title} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for title, names in (("missing", missing), ("left over", left), ("other size", other))
            if names
        ]
        raise UserError(f"{path} is of another model: {'; '.join(parts)}")
    kind = next((v.dtype for v in tensors.values() if v.dtype not in FLOATS), None)
    if kind is not None:
        raise UserError(
            f"{path} holds weights as {str(kind).removeprefix('torch.')}; use a checkpoint in "
            "float16, bfloat16 or float32"
        )
    bad = next((k for k, v in tensors.items() if not torch.isfinite(v).all()), None)
    if bad is not None:
        raise UserError(f"{path} holds NaN or infinity in {bad}; use an earlier checkpoint")
    module.load_state_dict(tensors, assign=assign)


def read_config(folder: Path) -> EditorConfig:
    """The configuration of the editor in ``folder``."""
    path = folder / "config.json"
    try:
        config = EditorConfig.from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no config.json; give a folder that egoedit train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again") from None
    check_config(config, path)
    return config


def check_config(config: EditorConfig, path: Path) -> None:
    """Raise UserError for a configuration that cannot stream."""
    counts = {"chunk_latents": config.chunk_latents, "window_chunks": config.window_chunks}
    counts["nfe"] = config.nfe
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{path}: {name} is {value!r}; it must be a whole number from 1 up")
    if any(side % 16 or side < 32 for side in config.size):
        raise UserError(f"{path}: both sides of size {config.size} must be multiples of 16")
    if not 0 < config.strength <= 1:
        raise UserError(f"{path}: strength is {config.strength}; it must be above 0, at most 1")
    for name, steady in (("steady", config.steady), ("steady_forms", config.steady_forms)):
        fits = isinstance(steady, tuple) and len(steady) in (0, 4)
        if not fits or not all(isinstance(x, (int, float)) and 0 <= x < 1 for x in steady):
            raise UserError(f"{path}: {name} must be 4 numbers from 0 to below 1, or none")
    if not isinstance(config.sharpen, bool):
        raise UserError(f"{path}: sharpen is {config.sharpen!r}; it must be true or false")


def load_editor(
    folder: Path,
) -> tuple[EditorConfig, Transformer, nn.Module, DetailNet | None]:
    """Configuration and float32 networks of the editor in ``folder``; None: it has no such one."""
    if not folder.is_dir():
        raise UserError(f"no model at {folder}; give edge or a folder with weights")
    config = read_config(folder)
    with torch.device("meta"):  # so that there are never two copies
        networks = [Transformer(config.transformer), build_autoencoder(config.autoencoder)]
        if config.detail is not None:
            networks.append(DetailNet(config))
    count = sum(p.numel() for network in networks for p in network.parameters())
    require_memory(f"{config.name} ({count / 1e9:.2f}B)", 4 * count, "cpu")
    for name, network in zip(PARTS, networks, strict=False):
        path = folder / f"{name}.safetensors"
        tensors = unpack(read_safetensors(path), path)
        tensors = {k: v.float() if v.dtype in FLOATS else v for k, v in tensors.items()}
        fill(network, tensors, path, assign=True)
        network.eval().requires_grad_(False)
    return config, networks[0], networks[1], networks[2] if config.detail is not None else None


def save_editor(
    folder: Path,
    config: EditorConfig,
    transformer: nn.Module,
    autoencoder: nn.Module,
    detail: DetailNet | None = None,
) -> None:
    """Write an editor with weights in float16 (buffers that scale latents stay float32), the detail
    network's convolutions in a byte to a weight (:mod:`egoedit_ros.model.packed`)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, network in zip(PARTS, (transformer, autoencoder, detail), strict=True):
        if network is None:
            continue
        exact = {k for k, _ in network.named_buffers()}
        tensors = {
            k: (v if k in exact else v.to(torch.float16)).contiguous()
            for k, v in network.state_dict().items()
        }
        if name == "detail":
            tensors = pack(tensors)
        part = folder / f"{name}.part"
        save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)
        part.replace(folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
