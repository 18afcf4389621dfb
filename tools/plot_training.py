# SPDX-License-Identifier: Apache-2.0
"""Draws the curves of training logs: ``python tools/plot_training.py OUT.png LOG.jsonl ...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

SHOWN = {
    "autoencoder": ("loss", "gain", "plain_psnr"),
    "flow": ("loss", "latent_gain", "outside"),
    "causal": ("loss", "latent_gain", "outside"),
    "rollout": ("loss", "latent_gain", "ssim"),
    "self": ("critic_loss", "latent_gain", "gradient"),
    "decoder": ("loss", "gain", "ssim"),
}


def smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean, so that the trend is seen through the noise of single batches."""
    width = min(width, len(values))
    kernel = np.ones(width) / width
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, kernel, mode="valid")


def main(output: Path, logs: list[Path]) -> None:
    figure, axes = plt.subplots(len(logs), 3, figsize=(13, 3.1 * len(logs)), squeeze=False)
    for row, log in zip(axes, logs, strict=True):
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        minutes = np.array([e["seconds"] for e in entries]) / 60
        name_of_log = log.name.split(".")[0]
        stage = name_of_log.removeprefix("more_").removeprefix("gpu_")
        for axis, name in zip(row, SHOWN.get(stage.split("_")[0], ("loss",)), strict=False):
            there = [i for i, e in enumerate(entries) if name in e]
            values = np.array([entries[i][name] for i in there])
            axis.plot(minutes[there], values, color="#9bb7d4", linewidth=0.7)
            axis.plot(minutes[there], smooth(values), color="#1f4e79", linewidth=1.8)
            axis.set_title(f"{name_of_log}: {name.replace('_', ' ')}", fontsize=10)
            axis.set_xlabel("minutes")
            axis.grid(alpha=0.25)
            if name == "loss":
                axis.set_ylim(0, float(np.quantile(values, 0.98)))
    figure.tight_layout()
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
