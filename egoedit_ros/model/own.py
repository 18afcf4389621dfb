# SPDX-License-Identifier: Apache-2.0
"""Editors from the user's own weights: a diffusers pipeline folder, or an ``editor.json``.

``editor.json`` names the parts and, where wanted, how to stream (docs/own_weights.md)::

    {"config": "wan-1.3b", "transformer": "self_forcing_dmd.pt", "autoencoder": "wan/vae",
     "text_encoder": "wan", "strength": 0.7}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.adapter import read_transformer
from egoedit_ros.model.checkpoint import check_config
from egoedit_ros.model.config import AutoencoderConfig, EditorConfig, get_config
from egoedit_ros.model.taehv import read_tiny_autoencoder
from egoedit_ros.model.tensor_files import read_json
from egoedit_ros.model.text_hub import encoder_kind
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.model.wan_autoencoder import MixedAutoencoder, read_wan_autoencoder

FILE = "editor.json"
PARTS = ("transformer", "autoencoder", "text_encoder")
STREAMING = ("size", "chunk_latents", "window_chunks", "sink_chunks", "nfe", "shift", "strength",
             "steady", "sharpen", "fps")  # fmt: skip


def own_description(path: Path) -> tuple[Path, dict] | None:
    """The folder and the parts of the editor at ``path``; None where it is none of these kinds."""
    file = path / FILE if path.is_dir() else path
    if file.is_file() and file.suffix == ".json":
        return file.parent, read_json(file)
    if (path / "model_index.json").is_file():
        return path, {"transformer": ".", "autoencoder": ".", "text_encoder": "."}
    return None


def load_own(
    path: Path, device: torch.device, dtype: torch.dtype
) -> tuple[EditorConfig, Transformer, nn.Module]:
    """The editor at ``path`` (see :func:`own_description`), in ``dtype`` on ``device``."""
    found = own_description(path)
    if found is None:
        raise UserError(f"{path} is no editor; it has no {FILE} and is no diffusers pipeline")
    folder, values = found
    _check_names(values, folder / FILE)
    base = get_config(values.get("config", "wan-1.3b"))
    streaming = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in STREAMING
    }
    text = folder / values["text_encoder"]
    try:
        config = dataclasses.replace(
            base,
            name=values.get("name", path.stem if path.is_file() else path.resolve().name),
            text_encoder=encoder_kind(text),
            text_folder=str(text),
            **streaming,
        )
        check_config(config, folder / FILE)
    except TypeError:
        raise UserError(f"{folder / FILE}: a streaming value is of the wrong kind") from None
    transformer = read_transformer(folder / values["transformer"], dtype, device)
    _compare(transformer, base, "config" in values, folder / values["transformer"])
    kind, autoencoder = _autoencoder(folder, values["autoencoder"], dtype, device)
    config = dataclasses.replace(
        config,
        transformer=dataclasses.replace(
            transformer.config, text_len=base.transformer.text_len
        ),
        autoencoder=AutoencoderConfig(
            kind=kind, latent_channels=transformer.config.out_channels
        ),
    )  # fmt: skip
    transformer.config = config.transformer
    return config, transformer, autoencoder


def _check_names(values: dict, path: Path) -> None:
    lost = [part for part in PARTS if part not in values]
    unknown = sorted(set(values) - {*PARTS, *STREAMING, "config", "name"})
    if lost or unknown:
        parts = [f"{t} {', '.join(n)}" for t, n in (("lacks", lost), ("has unknown", unknown)) if n]
        raise UserError(f"{path} {' and '.join(parts)}; docs/own_weights.md shows one")
    for part in ("transformer", "text_encoder"):
        if not isinstance(values[part], str):
            raise UserError(f"{path}: {part} must be the path of a file or folder")


def _compare(transformer: Transformer, base: EditorConfig, named: bool, path: Path) -> None:
    """Raise UserError where a configuration was named and the weights are of another."""
    have, want = transformer.config, base.transformer
    same = (have.layers, have.dim, have.ffn_dim) == (want.layers, want.dim, want.ffn_dim)
    if named and not same:
        raise UserError(
            f"{path} is of another model: {have.layers} layers {have.dim} wide (MLP "
            f"{have.ffn_dim}), {base.name} has {want.layers} of {want.dim} ({want.ffn_dim}); "
            "leave out config to take the weights' own size"
        )


def _autoencoder(
    folder: Path, named: object, dtype: torch.dtype, device: torch.device
) -> tuple[str, nn.Module]:
    """One path, or two: ``[encoder, decoder]``. A folder is Wan's, a file the tiny one's."""
    paths = [named] if isinstance(named, str) else named
    if (
        not isinstance(paths, list)
        or not 1 <= len(paths) <= 2
        or not all(isinstance(p, str) for p in paths)
    ):
        raise UserError(f"{folder / FILE}: autoencoder must be a path, or [encoder, decoder]")
    made = []
    for path in (folder / p for p in paths):
        if not path.exists():
            raise UserError(f"no autoencoder at {path}; give Wan's vae folder or taew2_1")
        if path.is_dir():
            made.append(("wan", read_wan_autoencoder(path, dtype, device)))
        else:
            made.append(("taehv", read_tiny_autoencoder(path, dtype, device)))
    kinds, modules = zip(*made, strict=True)
    if len(modules) == 1:
        return kinds[0], modules[0]
    return "+".join(kinds), MixedAutoencoder(*modules)
