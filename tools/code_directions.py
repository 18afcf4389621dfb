# SPDX-License-Identifier: Apache-2.0
"""How well pictures are kept by so many directions of a linear code, before any training.

    python tools/code_directions.py runs/all --model egoedit_ros/weights/edge

Crops of 96 pixels around edits, 8x8 pixels of four frames to a cell; PSNR on crops that the
directions were not found from. With --model also the bundled decoder's, source hidden.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import AutoencoderConfig
from egoedit_ros.train.autoencoder import AutoencoderData

COUNTS = (8, 16, 24, 32, 48, 64, 96, 128)
DRAWS, HELD_OUT = 60, 12


def psnr(made: Tensor, wanted: Tensor) -> float:
    return -10 * math.log10((made - wanted).square().mean().item() / 4)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", type=Path, help="a model's folder")
    args = parser.parse_args()
    data, rng = AutoencoderData(args.clips), np.random.default_rng(0)
    targets = torch.cat([data.sample(rng)[1] for _ in range(DRAWS)])
    train, test = targets[: -HELD_OUT * data.batch], targets[-HELD_OUT * data.batch :]
    for count in COUNTS:
        code = EdgeAutoencoder(AutoencoderConfig(latent_channels=count)).eval()
        code.fit(train)
        made, _ = code.decode(code.encode(test, fine=False).latents, None)
        print(f"{count:4d} directions: {psnr(made, test):.1f} dB", flush=True)
    if args.model:
        path = args.model / "autoencoder.safetensors"
        model = EdgeAutoencoder(AutoencoderConfig()).eval()
        fill(model, read_safetensors(path), path)
        made, _ = model.decode(model.encode(test, fine=False).latents, None)
        print(f"{path}: {psnr(made, test):.1f} dB")


if __name__ == "__main__":
    main()
