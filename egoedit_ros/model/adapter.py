# SPDX-License-Identifier: Apache-2.0
"""Transformer weights that others made, under the names they gave them.

Read are diffusers folders (sharded or not), original Wan, files of the Self Forcing family
(``.pt`` with ``generator_ema``) and ComfyUI's single files. Nothing is unpickled but tensors. All
names become those of diffusers' ``WanTransformer3DModel``; the shape of the network follows from
the tensors.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill
from egoedit_ros.model.config import TransformerConfig
from egoedit_ros.model.memory import require_memory
from egoedit_ros.model.tensor_files import TensorFile, open_tensors, read_json
from egoedit_ros.model.transformer import Transformer

WAN_HEAD_DIM = 128  # of every published Wan; no tensor tells it
# What wrappers put anywhere into a name, and before all names.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "module.", "transformer.")
# Original Wan to diffusers. Original ``norm3`` (before cross-attention, the only one with weights)
# is ``norm2`` there.
RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
        (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
        (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
        (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
        (r"^time_projection\.1\.", "condition_embedder.time_proj."),
        (r"^head\.head\.", "proj_out."),
        (r"^head\.modulation$", "scale_shift_table"),
        (r"^(blocks\.\d+\.)modulation$", r"\1scale_shift_table"),
        (r"^(blocks\.\d+\.)norm3\.", r"\1norm2."),
        (r"^(blocks\.\d+\.)ffn\.0\.", r"\1ffn.net.0.proj."),
        (r"^(blocks\.\d+\.)ffn\.2\.", r"\1ffn.net.2."),
        (r"^(blocks\.\d+\.)self_attn\.", r"\1attn1."),
        (r"^(blocks\.\d+\.)cross_attn\.", r"\1attn2."),
        (r"^(blocks\.\d+\.attn[12]\.)([qkv])\.", r"\1to_\2."),
        (r"^(blocks\.\d+\.attn[12]\.)o\.", r"\1to_out.0."),
    )
)


def canonical_names(names: list[str]) -> dict[str, str]:
    """The names of a checkpoint to diffusers' names. Raises UserError where two become one."""
    inside = [n for n in names if n.startswith("model.diffusion_model.")]
    out: dict[str, str] = {}
    for name in inside or names:  # a ComfyUI file may hold a text encoder and more beside it
        new = name
        for wrapper in WRAPPERS:
            new = new.replace(wrapper, "")
        while prefix := next((p for p in PREFIXES if new.startswith(p)), None):
            new = new.removeprefix(prefix)
        out[name] = new
    if any(".self_attn." in n or n.startswith("head.head") for n in out.values()):
        for name, new in out.items():
            for pattern, replacement in RENAMES:
                new = pattern.sub(replacement, new)
            out[name] = new
    if len(set(out.values())) != len(out):
        raise UserError("the checkpoint holds some weights twice; give one with one model in it")
    return out


def shape_of(shapes: dict[str, tuple[int, ...]], head_dim: int, path: Path) -> TransformerConfig:
    """The configuration that fits tensors of these (canonical) names and shapes."""

    def get(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(
                f"{path} is no Wan-type transformer: it has no {name}; first of its "
                f"{len(shapes)} tensors: {', '.join(sorted(shapes)[:3]) or 'none'}"
            )
        return shapes[name]

    patch = get("patch_embedding.weight")
    if len(patch) != 5:
        raise UserError(f"{path} is no Wan-type transformer: patch_embedding has shape {patch}")
    dim, in_channels, *cell = patch
    layers = [int(m[1]) for n in shapes if (m := re.match(r"blocks\.(\d+)\.", n))]
    if dim % head_dim or not layers:
        raise UserError(
            f"{path}: a width of {dim} is no multiple of the head size {head_dim}; put "
            "num_attention_heads into a config.json beside it"
        )
    time_in = get("condition_embedder.time_embedder.linear_1.weight")
    return TransformerConfig(
        layers=max(layers) + 1,
        heads=dim // head_dim,
        head_dim=head_dim,
        ffn_dim=get("blocks.0.ffn.net.0.proj.weight")[0],
        in_channels=in_channels,
        out_channels=get("proj_out.weight")[0] // (cell[0] * cell[1] * cell[2]),
        text_dim=get("condition_embedder.text_embedder.linear_1.weight")[1],
        text_len=512,
        freq_dim=time_in[1],
        patch=(cell[0], cell[1], cell[2]),
        cross_attn_norm="blocks.0.norm2.weight" in shapes,
        qk_norm="blocks.0.attn1.norm_q.weight" in shapes,
        anchored=False,
    )


def transformer_file(path: Path) -> Path:
    """Where the transformer lies in ``path``: a file, its folder, or a whole diffusers pipeline."""
    return path / "transformer" if (path / "transformer").is_dir() else path


def head_dim_of(path: Path) -> int:
    """The head size, from a ``config.json`` beside the weights if there is one."""
    folder = path if path.is_dir() else path.parent
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "attention_head_dim" in values:
        return int(values["attention_head_dim"])
    if "num_heads" in values and "dim" in values:  # original Wan
        return int(values["dim"]) // int(values["num_heads"])
    return WAN_HEAD_DIM


def widen(weight: Tensor, channels: int) -> Tensor:
    """``patch_embedding.weight`` [D, C, ...] with input channels added that count for nothing."""
    return F.pad(weight, (0, 0) * (weight.dim() - 2) + (0, channels - weight.shape[1]))


def read_transformer(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Transformer:
    """The transformer in ``path``, ready to edit, in ``dtype`` on ``device``.

    A text-to-video model (as many channels in as out) is widened for the source with zeros: it is
    then exactly what it was. Raises UserError, before anything is loaded, for what is no such
    transformer, what is missing or left over, and too little memory.
    """
    path = transformer_file(path)
    file = open_tensors(path)
    names = canonical_names(list(file.shapes))
    shapes = {new: file.shapes[old] for old, new in names.items()}
    config = shape_of(shapes, head_dim_of(path), path)
    editing = 2 * config.out_channels
    if config.in_channels not in (config.out_channels, editing):
        raise UserError(
            f"{path} takes {config.in_channels} channels and gives {config.out_channels}; an "
            f"editor takes {editing} (noise and source), a text-to-video model "
            f"{config.out_channels}; image-to-video models do not fit"
        )
    config = TransformerConfig(**(vars(config) | {"in_channels": editing}))
    with torch.device("meta"):
        network = Transformer(config)
    count = sum(p.numel() for p in network.parameters())
    require_memory(f"{path.name} ({count / 1e9:.2f}B)", count * dtype.itemsize, device)
    fill(network, _load(file, names, editing, dtype, device, network, path), path, assign=True)
    return network.eval().requires_grad_(False)


def _load(
    file: TensorFile,
    names: dict[str, str],
    channels: int,
    dtype: torch.dtype,
    device: torch.device | str,
    network: Transformer,
    path: Path,
) -> dict[str, Tensor]:
    """All tensors under their new names, one at a time into place. What does not fit the network
    is left on the meta device: its name and shape are what is reported."""
    wanted = network.state_dict()
    out: dict[str, Tensor] = {}
    for old, new in names.items():
        shape = file.shapes[old]
        fits = new in wanted and (
            tuple(wanted[new].shape) == shape or new == "patch_embedding.weight"
        )
        if not fits:
            out[new] = torch.empty(shape, device="meta")
            continue
        tensor = file.read(old)
        if new == "patch_embedding.weight" and tensor.shape[1] < channels:
            tensor = widen(tensor, channels)
        out[new] = tensor.to(device=device, dtype=dtype, copy=True)
    return out
