# SPDX-License-Identifier: Apache-2.0
"""Bags with source and edited frames to the latents that the transformer's stages read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from egoedit_ros.data.footage import Cut
from egoedit_ros.data.making import make_pairs
from egoedit_ros.data.pairs import BagTopics
from egoedit_ros.errors import UserError
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.train.latents import cache_latents

CLIPS, LATENTS = "bag_clips", "bag_latents"


def prepare_bags(
    bags: Sequence[Path],
    topics: BagTopics,
    config: EditorConfig,
    autoencoder: Path,
    output: Path,
    workers: int | None = None,
) -> Iterator[str]:
    """Cut the pairs of ``bags`` and encode them into ``output``; yields what is being done.

    What was made stays: called again it goes on, and more bags can be named. Raises UserError for
    bags without pairs; a bag that is wrong among good ones is told and left out.
    """
    if not bags:
        raise UserError("no bags are named; give some with source and edited frames")
    clips, latents = output / CLIPS, output / LATENTS
    for done, total, problem in make_pairs(
        list(bags), clips, Cut(size=config.size, fps=config.fps), topics, workers
    ):
        yield problem or f"pairs of {done} of {total} bags"
    for done, total in cache_latents(autoencoder, config, clips, latents, workers):
        yield f"{done} of {total} clips encoded"
