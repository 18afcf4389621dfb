# SPDX-License-Identifier: Apache-2.0
"""Stage ``whole``: a recipe's stages one after another in one process, on one GPU.

The clips stay in the GPU's memory from stage to stage, and more are rendered by other processes
meanwhile: for a GPU that is there for minutes, not hours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from egoedit_ros.data.clip import MOST_NUMBERS
from egoedit_ros.errors import UserError
from egoedit_ros.train.autoencoder import AutoencoderData, train_autoencoder
from egoedit_ros.train.batches import FlowData
from egoedit_ros.train.decoder import DecoderData, train_decoder
from egoedit_ros.train.dmd import DistillData, train_dmd
from egoedit_ros.train.flow import train_flow
from egoedit_ros.train.latents import load_frozen
from egoedit_ros.train.parallel import alone, join
from egoedit_ros.train.resident import ResidentClips, ResidentData
from egoedit_ros.train.rollout import RolloutData, Validation, train_rollout
from egoedit_ros.train.self_forcing import train_self_forcing
from egoedit_ros.train.stages import build

KNOWN = (
    "autoencoder",
    "flow",
    "flow_whole",
    "dmd",
    "causal",
    "rollout",
    "self_forcing",
    "decoder",
)
USUAL_DISTILLING = {"betas": (0.0, 0.999), "clip": 10.0, "ema": 0.99, "warmup": 1}
USUAL_DISTILLING |= {"schedule": "constant"}


def render(folder: Path, told: dict) -> subprocess.Popen:
    """Start ``egoedit data sim`` with these options (seed, clips, workers, tasks, frames); what it
    says goes to a file beside the folder."""
    command = [sys.executable, "-m", "egoedit_ros.data.sim.cli", "sim", "-o", str(folder)]
    for name, value in told.items():
        command += [f"--{name}", str(value)]
    with folder.with_suffix(".log").open("w") as log:
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=alone, stdout=subprocess.DEVNULL, stderr=log)


class Whole:
    """One run of the stages that ``build`` and ``settings`` make of the recipe's sections."""

    def __init__(self, work, section: dict) -> None:
        self.work, self.section = work, dict(section)
        self.config, self.output = work.config, work.output
        self.stages = self._take("stages", list)
        self.renders = self._take("render", list)
        self.clips = self._take("clips", dict)
        self.validation = dict(self._take("validation", dict))
        self.most = self.validation.pop("most", 64)
        self._refuse_evaluation_seeds()
        self.device = self.section.pop("device", "auto")
        wrong = [name for name in self.stages if name not in KNOWN]
        if wrong or not self.stages:
            said = f"has no stage {wrong[0]!r}" if wrong else "names no stage"
            raise UserError(f"whole {said}; use some of: {', '.join(KNOWN)}")
        if self.section:
            raise UserError(f"whole has no setting {sorted(self.section)[0]}; leave it out")

    def _take(self, name: str, kind: type):
        value = self.section.pop(name, None)
        if not isinstance(value, kind):
            raise UserError(
                f"whole: give {name}, a {kind.__name__}; see config/train/edge_gpu.yaml"
            )
        return value

    def _refuse_evaluation_seeds(self) -> None:
        """Such clips would never be taken in, and the run would wait for them until it gives up."""
        for told in (self.validation, *self.renders):
            seed, clips = told.get("seed", 0), told.get("clips", 1)
            if not (isinstance(seed, int) and isinstance(clips, int)):
                raise UserError(f"whole: seed {seed!r}, clips {clips!r}; give whole numbers")
            if seed + clips > MOST_NUMBERS:
                raise UserError(
                    f"whole: {clips} clips from seed {seed} reach those that only evaluate "
                    f"({MOST_NUMBERS} up); give a lower seed"
                )

    def run(self) -> Path:
        """All stages; returns what the last one made."""
        group = join(self.device)
        torch.backends.cudnn.benchmark = True
        alone(group, "whole")
        folder = self.work.folders["clips"]
        folder.mkdir(parents=True, exist_ok=True)
        renderers: list[subprocess.Popen] = []
        try:
            for number, told in enumerate([self.validation, *self.renders]):
                if told.get("workers") != 0:  # 0: another process renders
                    renderers.append(render(folder / f"part{number}", told))
            held = folder / "part0"
            more = tuple(folder / f"part{n + 1}" for n in range(len(self.renders)))
            frames = int(self.validation.get("frames", 13))
            with (
                ResidentClips(ResidentData(more, **self.clips), self.config, group.device) as clips,
                ResidentClips(
                    ResidentData((held,), int(self.validation["clips"]), 10**6, frames, wait=4),
                    self.config,
                    group.device,
                ) as unseen,
            ):
                for name in self.stages:
                    made = self._stage(name, clips, unseen)
                    print(f"{name}: {clips.count} clips, {made}", flush=True)
                    watch = self.work.watch
                    if watch is not None and watch.stopped():
                        break
            return made
        finally:
            for process in renderers:
                process.terminate()

    def _stage(self, name: str, clips: ResidentClips, unseen: ResidentClips) -> Path:
        part = self.work.part(name)
        part.section.setdefault("device", self.device)
        autoencoder = self.output / "autoencoder.safetensors"
        start = part.path("start")
        if name == "autoencoder":
            settings, rest = part.settings()
            data = build(AutoencoderData, {"clips": self.work.folders["clips"]} | rest)
            made = train_autoencoder(settings, data, start, clips)
            clips.encode_with(load_frozen(made, self.config, str(clips.device)))
            return made
        if clips.encoder is None:
            clips.encode_with(load_frozen(autoencoder, self.config, str(clips.device)))
        if name == "decoder":
            settings, rest = part.settings()
            given = {
                "clips": self.work.folders["clips"],
                "transformer": self.output / f"{rest.pop('transformer', 'rollout')}.safetensors",
                "autoencoder": autoencoder,
            }
            return train_decoder(settings, build(DecoderData, given | rest), clips)
        validation = Validation(unseen, self.config, autoencoder, self.most)
        if name == "rollout":
            settings, rest = part.settings()
            names = set(RolloutData.__dataclass_fields__) - {"autoencoder"}
            given = {k: rest.pop(k) for k in sorted(names) if k in rest}
            data = build(FlowData, part.flow_values(rest))
            told = build(RolloutData, {"autoencoder": autoencoder} | given)
            return train_rollout(settings, data, told, clips, start, validation)
        if name in ("dmd", "self_forcing"):
            given = {k: part.path(k) for k in ("teacher", "fake")}
            if given["teacher"] is None:
                raise UserError(f"{name} names no teacher; give the weights that flow left")
            usual = {"critic_steps": 5 if name == "dmd" else 10}
            settings, rest = part.settings(USUAL_DISTILLING | usual)
            names = set(DistillData.__dataclass_fields__)
            given |= {k: v for k, v in rest.items() if k in names}
            rest = {k: v for k, v in rest.items() if k not in names}
            data = build(FlowData, part.flow_values(rest))
            train = train_dmd if name == "dmd" else train_self_forcing
            told = build(DistillData, given)
            return train(settings, data, told, start, validation, clips)
        settings, rest = part.settings()
        data = build(FlowData, part.flow_values(rest))
        if name == "causal" and data.attention != "causal":
            raise UserError("the stage causal trains causal attention; leave out attention")
        return train_flow(settings, data, start, validation, clips)
