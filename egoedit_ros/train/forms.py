# SPDX-License-Identifier: Apache-2.0
"""Stages ``form_views`` and ``forms``: what things and a hand look like, learned from views of each
alone (:mod:`egoedit_ros.data.sim.forms`), for the detail network to know by heart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.forms import Forms
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.scenes import make_scenes, save_scene, training_seeds

SOFT = 0.05  # units: outlines nearer than that count alike
SEEN_EDGE = 20.0  # what counts besides is what is inside, with edges over a twentieth of a unit
SECOND, FACES = 0.5, 0.1  # what the second outline and what is met count, beside the outline's 1


@dataclass(frozen=True)
class FormViews:
    """seeds: rows of (first, count) of scenes whose views are filmed."""

    seeds: tuple = ((600_000, 600),)
    workers: int | None = None


def _work(folder: Path, seeds: list[int], put) -> None:
    from egoedit_ros.data.sim.forms import SIZE, film_forms
    from egoedit_ros.data.sim.render import Simulator

    simulator = Simulator(*SIZE)
    for seed in seeds:
        # None: a scene whose camera sees none of what it was to see.
        if views := film_forms(simulator, seed):
            arrays = {name: np.stack([view[name] for view in views]) for name in views[0]}
            save_scene(folder, seed, arrays)
        put(seed)


def make_views(folder: Path, views: FormViews) -> Iterator[tuple[int, int]]:
    """Film the missing scenes' views, one file a scene; yields (done, of). Raises UserError for
    seeds that are none for training."""
    seeds = training_seeds("form_views", views.seeds)
    return make_scenes(_work, folder, seeds, views.workers, "views")


BODIES = ("thing", "hand")


@dataclass(frozen=True)
class FormsData:
    """views: the folder of stage ``form_views``; bodies: which to learn; batch: views of each to a
    step; lines: of sight to each."""

    views: Path
    bodies: tuple = BODIES
    batch: int = 32
    lines: int = 400


class FormsStep:
    """Some views of things and of the hand: how far what is told of their lines is off."""

    def __init__(self, model: Forms, data: FormsData) -> None:
        from safetensors.torch import load_file

        unknown = [body for body in data.bodies if body not in BODIES]
        if unknown or not data.bodies:
            raise UserError(f"forms: bodies is {data.bodies!r}; choose from {', '.join(BODIES)}")
        self.model, self.data = model, data
        paths = sorted(data.views.glob("*.safetensors"))
        if not paths:
            raise UserError(f"no views in {data.views}; run the stage form_views first")
        parts = [load_file(path) for path in paths]
        self.views = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        kinds = self.views["kind"]
        groups = {"thing": torch.nonzero(kinds >= 0)[:, 0], "hand": torch.nonzero(kinds < 0)[:, 0]}
        self.groups = {body: groups[body] for body in data.bodies}

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, told = torch.zeros(()), {}
        for name, group in self.groups.items():
            which = group[rng.integers(len(group), size=self.data.batch)]
            lines = rng.integers(self.views["points"].shape[1], size=self.data.lines)
            loss, off = self.loss(which, torch.from_numpy(lines), name == "thing")
            total = total + loss
            told[name] = off
        return total, told

    def loss(self, which: Tensor, lines: Tensor, thing: bool) -> tuple[Tensor, Tensor]:
        """Of views and lines of each; and how far outlines are off where they are near (units)."""
        v, model = self.views, self.model
        points, told = (v[name][which][:, lines].float() for name in ("points", "told"))
        inside = v["inside"][which][:, lines].float()
        code = model.codes(v["kind"][which]) if thing else v["curl"][which, None]
        net = model.thing if thing else model.hand
        said = net(points, v["line"][which], v["near"][which], code).float()
        off = (said - told).abs()
        seen = [torch.tanh(SEEN_EDGE * x[..., :2]) for x in (said, told)]
        near = off[..., :2] / (told[..., :2].abs() + SOFT) + (seen[0] - seen[1]).abs()
        loss = near[..., 0].mean() + thing * SECOND * near[..., 1].mean()
        met = (off[..., 2:].sum(-1) * inside).sum() / inside.sum().clamp(min=1)
        close = told[..., 0].abs() < 3 * SOFT
        return loss + FACES * met, off[..., 0][close].mean().detach()


def train_forms(settings: TrainSettings, data: FormsData, start: Path | None = None) -> Path:
    """Run the stage; the checkpoint is a :class:`Forms`. start: weights to begin from."""
    torch.manual_seed(settings.seed)
    model = Forms(settings.editor.detail or DetailConfig())
    if start is not None:
        fill(model, read_safetensors(start), start)
    return Trainer(model, settings, FormsStep(model, data), data={"data": data.__dict__}).run()
