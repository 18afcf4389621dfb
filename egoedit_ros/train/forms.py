# SPDX-License-Identifier: Apache-2.0
"""Stages ``form_views``, ``forms`` and ``lights``: what things and a hand look like, learned from
views of each alone (:mod:`egoedit_ros.data.sim.forms`), for the detail network to know by heart;
and the light in which a bottle's cap is usually seen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from egoedit_ros.data.clip import cannot_write
from egoedit_ros.data.crew import run_crew
from egoedit_ros.data.sim.vocabulary import EVALUATION_SEED, KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.forms import Forms
from egoedit_ros.train.loop import Trainer, TrainSettings

SOFT = 0.05  # units: outlines nearer than that count alike
SEEN_EDGE = 20.0  # what counts besides is what is inside, with edges over a twentieth of a unit
SECOND, FACES = 0.5, 0.1  # what the second outline and what is met count, beside the outline's 1


@dataclass(frozen=True)
class FormViews:
    """seeds: rows of (first, count) of scenes whose views are filmed."""

    seeds: tuple = ((600_000, 600),)
    workers: int | None = None

    def all(self) -> list[int]:
        """Raises UserError for no seed, and for those that are kept for evaluation."""
        try:
            seeds = [first + i for first, count in self.seeds for i in range(count)]
        except (TypeError, ValueError):
            seeds = []
        if not seeds or min(seeds) < 0 or max(seeds) >= EVALUATION_SEED:
            raise UserError(
                f"form_views: seeds are {self.seeds!r}; give rows of [first, count] below "
                f"{EVALUATION_SEED}, from where on they are for evaluation"
            )
        return seeds


def _work(folder: Path, seeds: list[int], put) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from egoedit_ros.data.sim.forms import SIZE, film_forms
    from egoedit_ros.data.sim.render import Simulator

    simulator = Simulator(*SIZE)
    for seed in seeds:
        views = film_forms(simulator, seed)
        if not views:  # a scene whose camera sees none of what it was to see
            put(seed)
            continue
        path = folder / f"{seed}.safetensors"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file({name: np.stack([v[name] for v in views]) for name in views[0]}, part)
            part.replace(path)
        except (SafetensorError, OSError) as error:
            raise cannot_write(path, error) from None
        finally:
            part.unlink(missing_ok=True)
        put(seed)


def make_views(folder: Path, views: FormViews) -> Iterator[tuple[int, int]]:
    """Film the missing scenes' views, one file a scene; yields (done, of)."""
    seeds = views.all()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not (folder / f"{seed}.safetensors").exists()]
    done = len(seeds) - len(missing)
    yield done, len(seeds)
    if missing:
        for _ in run_crew(_work, folder, missing, views.workers, "views"):
            done += 1
            yield done, len(seeds)


@dataclass(frozen=True)
class FormsData:
    """views: the folder of stage ``form_views``; batch: views of things to a step, and as many of
    the hand; lines: of sight to each."""

    views: Path
    batch: int = 32
    lines: int = 400


class FormsStep:
    """Some views of things and of the hand: how far what is told of their lines is off."""

    def __init__(self, model: Forms, data: FormsData) -> None:
        from safetensors.torch import load_file

        self.model, self.data = model, data
        paths = sorted(data.views.glob("*.safetensors"))
        if not paths:
            raise UserError(f"no views in {data.views}; run the stage form_views first")
        parts = [load_file(path) for path in paths]
        self.views = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        kinds = self.views["kind"]
        self.groups = [torch.nonzero(kinds >= 0)[:, 0], torch.nonzero(kinds < 0)[:, 0]]

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, told = torch.zeros(()), {}
        for name, group in zip(("thing", "hand"), self.groups, strict=True):
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


LEAST = 5  # pixels of a second material that say something
CHANGED = 0.08  # summed over the colours: what is edited
WITHIN = 0.03  # units inside of an outline


def usual_light(forms: Forms, samples: Path, every: int = 6) -> Forms:
    """Give ``forms`` the usual light of second materials (:class:`~egoedit_ros.model.forms.Usual`),
    by least squares over what ``detail_samples`` put in things' places: one picture of each of a
    scene's texts, of each ``every``-th scene."""
    paths = sorted(samples.glob("*.safetensors"))[::every]
    if not paths:
        raise UserError(f"no samples in {samples}; run the stage detail_samples first")
    kinds = len(forms.usual_light)
    faces, light = torch.zeros(kinds, 4, 4), torch.zeros(kinds, 4, 3)
    counts = torch.zeros(kinds)
    for path in paths:
        for kind, pose, source, target in _placed(path):
            told = torch.eye(kinds + 1)[None, kind]
            seen = forms(pose[None], told, tuple(source.shape[1:]), 1)[0]
            changed = (source - target).abs().sum(0) > CHANGED
            of = changed & (seen[0] > WITHIN) & (seen[1] > WITHIN)
            if of.sum() < LEAST:
                continue
            met = torch.cat([torch.ones(1, int(of.sum())), seen[2:5, of]])
            faces[kind] += met @ met.T / of.sum()
            light[kind] += met @ target[:, of].T / of.sum()
            counts[kind] += 1
    some = counts.clamp(min=1)[:, None, None]
    faces, light = faces / some, light / some
    forms.usual_faces.copy_(faces)
    forms.usual_light.copy_(torch.linalg.solve(faces + 1e-3 * torch.eye(4), light))
    return forms


def _placed(path: Path) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Of a file of samples: kinds of what was put in a thing's place, poses, pictures in 0..1."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["texts"])
        of = file.get_tensor("place")[:, 2].tolist()
        poses = file.get_tensor("pose")
        films = [file.get_slice(name) for name in ("source", "target")]
        for text, (task, _, kind) in enumerate(told):
            if task == "replace" and text in of:
                row = of.index(text)
                pictures = [film[row : row + 1][0].permute(2, 0, 1).float() / 255 for film in films]
                yield KINDS.index(kind), poses[row], *pictures


def light_forms(path: Path, config: DetailConfig, forms: Path, samples: Path) -> Path:
    """Run the stage ``lights``: write ``forms`` to ``path`` with the usual light of second
    materials."""
    from safetensors.torch import save_file

    from egoedit_ros.model.checkpoint import fill, read_safetensors

    model = Forms(config).eval().requires_grad_(False)
    fill(model, read_safetensors(forms), forms)
    usual_light(model, samples)
    part = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
    part.replace(path)
    return path


def train_forms(settings: TrainSettings, data: FormsData) -> Path:
    """Run the stage; the checkpoint is a :class:`Forms`."""
    torch.manual_seed(settings.seed)
    model = Forms(settings.editor.detail or DetailConfig())
    return Trainer(model, settings, FormsStep(model, data), data={"data": data.__dict__}).run()
