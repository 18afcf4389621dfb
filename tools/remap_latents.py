# SPDX-License-Identifier: Apache-2.0
"""Carry a transformer over to the latents of another autoencoder, as well as a linear map can.

What a transformer has learned about words, hands and shapes is worth keeping when its latents
change. Its first layer gets a least-squares map from the new latents of a token to the old ones in
front, its last one a map of *changes* (what an anchored network predicts) behind:

    git show 9d89231:egoedit_ros/model/autoencoder.py > runs/old_autoencoder.py
    git show 9d89231:egoedit_ros/weights/edge/autoencoder.safetensors > runs/old_ae.safetensors
    git show 9d89231:egoedit_ros/weights/edge/transformer.safetensors > runs/old_dit.safetensors
    python tools/remap_latents.py runs/old_autoencoder.py runs/old_ae.safetensors \\
        runs/old_dit.safetensors runs/edge_crossed/autoencoder.safetensors \\
        --clips runs/edge_crossed_clips/part1 -o runs/edge_crossed/start.safetensors

The first file is the code of the old autoencoder, which is run.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.config import get_config
from egoedit_ros.train.autoencoder import AutoencoderData

# Sizes of the old autoencoder, up to revision 9d89231.
OLD = SimpleNamespace(
    width=80, deep_width=160, temporal=4, latent_channels=32, encoder_blocks=(1, 1),
    decoder_blocks=(2, 2),
)  # fmt: skip
DRAWS = 110
RIDGE = 1e-2


def tokens(latents: Tensor) -> Tensor:
    """``[N, C, h, w]`` to ``[tokens, C*2*2]``, in the order of a patch embedding's weight."""
    n, c, h, w = latents.shape
    cells = latents.reshape(n, c, h // 2, 2, w // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, 4 * c)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The matrix that takes x to y best, and what share of y's variance it explains where it was
    not fitted (printed)."""
    cut = int(0.9 * len(x))
    gram = x[:cut].T @ x[:cut] / cut + RIDGE * torch.eye(x.shape[1])
    made = torch.linalg.solve(gram, x[:cut].T @ y[:cut] / cut).T
    left = (x[cut:] @ made.T - y[cut:]).square().mean() / y[cut:].square().mean()
    print(f"explains {1 - left:.2f}")
    return made


@torch.no_grad()
def draw(old: nn.Module, new: EdgeAutoencoder, clips: Path) -> tuple[Tensor, ...]:
    """Tokens of both, and the changes of those that an edit changes."""
    data, rng = AutoencoderData(clips, crop=128, batch=12), np.random.default_rng(5)
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    for _ in range(DRAWS):
        pair = data.sample(rng)
        a = [tokens(old.encode(x).latents) for x in pair]
        b = [tokens(new.encode(x, fine=False).latents) for x in pair]
        changed = (b[1] - b[0]).square().sum(1) > 1
        drawn = torch.cat(a), torch.cat(b), (a[1] - a[0])[changed], (b[1] - b[0])[changed]
        for column, values in zip(columns, drawn, strict=True):
            column.append(values)
    return tuple(torch.cat(column) for column in columns)


def remap(weights: dict[str, Tensor], drawn: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The transformer's weights for the new latents."""
    old, new, old_change, new_change = drawn
    old_mean, new_mean = old.mean(0), new.mean(0)
    to_old = least_squares(new - new_mean, old - old_mean)
    to_new = least_squares(old_change, new_change)
    made = dict(weights)
    embed, c = weights["patch_embedding.weight"], old.shape[1] // 4
    width, channels = len(embed), new.shape[1] // 4
    halves = [half.flatten(1) @ to_old for half in (embed[:, :c], embed[:, c:])]
    made["patch_embedding.weight"] = torch.cat(
        [half.reshape(width, channels, 1, 2, 2) for half in halves], 1
    )
    offset = embed[:, c:].flatten(1) @ (old_mean - to_old @ new_mean)
    made["patch_embedding.bias"] = weights["patch_embedding.bias"] + offset
    for name in ("proj_out.weight", "proj_out.bias"):
        # The output's order is rows, columns, channels; a patch embedding's has channels first.
        rows = weights[name].reshape(2, 2, c, -1).permute(2, 0, 1, 3).reshape(4 * c, -1)
        rows = (to_new @ rows).reshape(channels, 2, 2, -1).permute(1, 2, 0, 3)
        made[name] = rows.reshape(4 * channels, *weights[name].shape[1:])
    return {k: v.contiguous() for k, v in made.items()}


def add_gates(weights: dict[str, Tensor], channels: int, gates: int) -> dict[str, Tensor]:
    """Rows of zeros for an output's gates: they begin closed."""
    made = dict(weights)
    for name in ("proj_out.weight", "proj_out.bias"):
        rows = weights[name].unflatten(0, (-1, channels))
        none = rows.new_zeros(len(rows), gates, *rows.shape[2:])
        made[name] = torch.cat([rows, none], 1).flatten(0, 1).contiguous()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("code", type=Path, help="autoencoder.py of the old revision")
    parser.add_argument("old", type=Path, help="the old autoencoder's weights")
    parser.add_argument("transformer", type=Path, help="the transformer's")
    parser.add_argument("new", type=Path, help="the new autoencoder's")
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("old_autoencoder", args.code)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    config = get_config("edge")
    old, new = module.EdgeAutoencoder(OLD), EdgeAutoencoder(config.autoencoder)
    for model, path in ((old, args.old), (new, args.new)):
        model.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    weights = {k: v.float() for k, v in load_file(args.transformer).items()}
    made = remap(weights, draw(old.eval(), new.eval(), args.clips))
    shape = config.transformer
    save_file(add_gates(made, shape.out_channels, shape.gates), args.output)


if __name__ == "__main__":
    main()
