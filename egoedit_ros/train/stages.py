# SPDX-License-Identifier: Apache-2.0
"""A recipe (the YAML file of ``egoedit train``) and the stages that it sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import DetailConfig, EditorConfig, get_config
from egoedit_ros.train.watch import Watch

STAGES = {
    "autoencoder": "learn to code pictures and to decode an edit beside its source",
    "latents": "encode the clips once for the transformer",
    "flow": "rectified flow; attention: bidirectional (the teacher) or causal",
    "flow_whole": "the same on whole frames, from the weights of flow",
    "dmd": "distil the bidirectional editor into few steps without guidance",
    "causal": "rectified flow, block-causal by teacher or diffusion forcing",
    "self_forcing": "distil on streams that the editor makes itself, through its cache",
    "rollout": "learn on streams that the editor makes itself, from the pairs' targets (in whole)",
    "decoder": "teach the decoder what the transformer gives it",
    "form_views": "things and the hand alone, from where head cameras are, for forms",
    "forms": "learn what things and a hand look like from any side, for detail",
    "room_views": "pictures of rooms, and what is known of each, for places and lights",
    "detail_samples": "edits as streams make them, beside their targets, for detail",
    "detail": "teach the detail network what edits should have looked like",
    "places": "learn to look again at where things and the hand are, for detail",
    "lights": "learn what light falls and which colour a text means, after forms, for detail",
    "sample": "edit validation clips with a checkpoint: a video and figures",
    "bundle": "put the trained networks into a model folder",
    "whole": "several stages on one GPU, on clips that are rendered meanwhile",
}
FOLDERS = ("output", "clips", "latents")


def read_recipe(path: Path) -> dict:
    """The YAML file as a table. Raises UserError when it is not one."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is not a table of settings; see config/train/edge.yaml")
    return recipe


def recipe_config(recipe: dict) -> EditorConfig:
    """The editor that a recipe trains: ``model`` is a configuration's name, or a table of one's
    (``base``) with what is other in it."""
    model = recipe.get("model", "edge")
    if isinstance(model, str):
        return get_config(model)
    if not isinstance(model, dict):
        raise UserError("model must be a name, or a table with base and what is other in it")
    values = dict(model)
    base = get_config(values.pop("base", "edge"))
    try:
        for part in ("transformer", "autoencoder", "detail"):
            inner = _tuples(values.pop(part, {}))
            if inner:
                own = getattr(base, part) or DetailConfig()
                base = dataclasses.replace(base, **{part: dataclasses.replace(own, **inner)})
        return dataclasses.replace(base, **_tuples(values))
    except TypeError as error:
        raise UserError(f"the recipe's model does not fit: {error}") from None


def run_stage(
    stage: str,
    recipe: dict,
    name: str = "the recipe",
    minutes: float | None = None,
    watch: Watch | None = None,
) -> Path:
    """Run a stage to its end; returns what it made. name: of the recipe, for messages.

    Raises UserError for a recipe that does not fit, KeyboardInterrupt after SIGINT or SIGTERM
    (a checkpoint is there then).
    """
    if stage not in STAGES:
        raise UserError(f"no stage called {stage!r}; use one of: {', '.join(STAGES)}")
    section = recipe.get(stage) or {}
    if not isinstance(section, dict):
        raise UserError(f"{name}: {stage} must be a table of settings")
    section = dict(section)
    if minutes is not None:
        section["minutes"] = minutes
    named = recipe.get("folders") or {}
    for folder in FOLDERS:
        if folder not in named:
            raise UserError(f"{name} names no folder '{folder}'; add it under folders")
    work = _Work(stage, recipe_config(recipe), section, {k: Path(v) for k, v in named.items()})
    work.watch, work.recipe = watch, recipe
    made = getattr(work, stage if stage not in ("flow_whole", "causal") else "flow")()
    return made


class _Work:
    """One stage of one recipe; a method to each."""

    watch: Watch | None = None
    recipe: dict = {}

    def __init__(
        self, stage: str, config: EditorConfig, section: dict, folders: dict[str, Path]
    ) -> None:
        self.stage, self.config, self.section, self.folders = stage, config, section, folders
        self.output = folders["output"]

    def autoencoder(self) -> Path:
        from egoedit_ros.train.autoencoder import AutoencoderData, train_autoencoder

        start = self.path("start")
        settings, rest = self.settings()
        clips = Path(rest.pop("clips", self.folders["clips"]))
        return train_autoencoder(settings, build(AutoencoderData, {"clips": clips} | rest), start)

    def latents(self) -> Path:
        from tqdm import tqdm

        from egoedit_ros.train.latents import cache_latents

        checkpoint = Path(self.section.pop("autoencoder", self.output / "autoencoder.safetensors"))
        clips, latents = self.folders["clips"], self.folders["latents"]
        known = {k: self.section.pop(k) for k in ("workers", "shard") if k in self.section}
        if self.section:
            raise UserError(f"latents has no setting {sorted(self.section)[0]}; leave it out")
        with tqdm(unit="clip") as bar:
            for done, total in cache_latents(checkpoint, self.config, clips, latents, **known):
                bar.total = total
                bar.update(done - bar.n)
        return latents

    def flow(self) -> Path:
        from egoedit_ros.train.batches import FlowData
        from egoedit_ros.train.flow import train_flow

        start, sampler = self.path("start"), self._sampler()
        settings, rest = self.settings()
        data = build(FlowData, self.flow_values(rest))
        if self.stage == "causal" and data.attention != "causal":
            raise UserError("the stage causal trains causal attention; leave out attention")
        return train_flow(settings, data, start, sampler)

    def dmd(self) -> Path:
        from egoedit_ros.train.dmd import train_dmd

        return self._distil(train_dmd, "bidirectional")

    def self_forcing(self) -> Path:
        from egoedit_ros.train.self_forcing import train_self_forcing

        return self._distil(train_self_forcing, "causal")

    def _distil(self, train, attention: str) -> Path:
        from egoedit_ros.train.batches import FlowData
        from egoedit_ros.train.dmd import DistillData

        start, sampler = self.path("start"), self._sampler()
        given = {k: self.path(k) for k in ("teacher", "fake")}
        if given["teacher"] is None:
            raise UserError(f"{self.stage} names no teacher; give the weights that flow left")
        # Self Forcing's: no momentum, a wide clip, a young average.
        usual = {"betas": (0.0, 0.999), "clip": 10.0, "ema": 0.99, "warmup": 1}
        usual |= {"schedule": "constant", "critic_steps": 10 if attention == "causal" else 5}
        settings, rest = self.settings(usual)
        names = {f.name for f in dataclasses.fields(DistillData)}
        given |= {k: v for k, v in rest.items() if k in names}
        rest = {k: v for k, v in rest.items() if k not in names}
        data = build(FlowData, {"attention": attention} | self.flow_values(rest))
        return train(settings, data, build(DistillData, given), start, sampler)

    def decoder(self) -> Path:
        from egoedit_ros.train.decoder import DecoderData, train_decoder

        settings, rest = self.settings()
        given = {
            "clips": self.folders["clips"],
            "transformer": self.output / f"{rest.pop('transformer', 'flow')}.safetensors",
            "autoencoder": self.output / "autoencoder.safetensors",
        }
        return train_decoder(settings, build(DecoderData, given | rest))

    def form_views(self) -> Path:
        from egoedit_ros.train.forms import FormViews, make_views

        return self._made(make_views, build(FormViews, self.section))

    def forms(self) -> Path:
        from egoedit_ros.train.forms import FormsData, train_forms

        start = self.path("start")
        settings, rest = self.settings()
        views = Path(rest.pop("views", self.output / "form_views"))
        return train_forms(settings, build(FormsData, {"views": views} | rest), start)

    def room_views(self) -> Path:
        from egoedit_ros.train.rooms import RoomViews, make_rooms

        return self._made(make_rooms, build(RoomViews, self.section))

    def lights(self) -> Path:
        from egoedit_ros.train.lights import LightsData, train_lights

        settings, rest = self.settings()
        given = {"rooms": self.output / "room_views", "forms": self.output / "forms.safetensors"}
        given |= {k: Path(v) if k in given else v for k, v in rest.items()}
        return train_lights(settings, build(LightsData, given))

    def detail_samples(self) -> Path:
        from egoedit_ros.train.detail_samples import SampleScenes, make_samples

        return self._made(make_samples, build(SampleScenes, self.section))

    def _made(self, make: Callable, scenes: object) -> Path:
        """Make the stage's scenes into a folder of its name, with a bar."""
        from tqdm import tqdm

        folder = self.output / self.stage
        with tqdm(unit="scene") as bar:
            for done, total in make(folder, scenes):
                bar.total = total
                bar.update(done - bar.n)
        return folder

    def detail(self) -> Path:
        from egoedit_ros.train.detail import DetailData, train_detail

        start = self.path("start")
        settings, rest = self.settings()
        given = {
            "samples": self.output / "detail_samples",
            "autoencoder": self.output / "autoencoder.safetensors",
            "forms": self.output / "forms.safetensors",
        }
        paths = (*given, "places", "lights")
        given |= {k: Path(v) if k in paths else v for k, v in rest.items()}
        return train_detail(settings, build(DetailData, given), start)

    def places(self) -> Path:
        from egoedit_ros.train.places import PlacesData, train_places

        start = self.path("start")
        settings, rest = self.settings()
        rooms = Path(rest.pop("rooms", self.output / "room_views"))
        return train_places(settings, build(PlacesData, {"rooms": rooms} | rest), start)

    def sample(self) -> Path:
        from egoedit_ros.train.flow import new_transformer
        from egoedit_ros.train.parallel import alone, join

        checkpoint = self.path("checkpoint")
        if checkpoint is None:
            raise UserError("sample names no checkpoint; give the weights to look at")
        folder = self.output / "samples" / checkpoint.stem
        group = join()
        alone(group, self.stage)
        sampler = self._sampler_of(self.section, folder)
        net = new_transformer(self.config, checkpoint, group)
        figures = sampler(net.eval().requires_grad_(False), 0)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "figures.json"
        path.write_text(json.dumps(figures, indent=1) + "\n")
        return path

    def bundle(self) -> Path:
        from egoedit_ros.model.autoencoder import build_autoencoder
        from egoedit_ros.model.checkpoint import fill, read_safetensors, save_editor
        from egoedit_ros.model.detail import DetailNet
        from egoedit_ros.model.transformer import Transformer

        named = {"transformer": "flow", "autoencoder": "autoencoder", "detail": None}
        # Parts of the detail network that were learned by themselves, where they are newer than it.
        newer = {k: self.section[k] for k in ("forms", "places", "lights") if k in self.section}
        named |= {k: v for k, v in self.section.items() if k in named}
        config = self.config
        if named["detail"] is None:  # one that was trained on another transformer's edits is none
            config = dataclasses.replace(config, detail=None)
        parts = [
            (Transformer(config.transformer), named["transformer"]),
            (build_autoencoder(config.autoencoder), named["autoencoder"]),
        ]
        if config.detail is not None:
            parts.append((DetailNet(config), named["detail"]))
        networks = []
        for network, name in parts:
            path = self.output / f"{name}.safetensors"
            tensors = read_safetensors(path)
            if isinstance(network, DetailNet):
                for part, newest in newer.items():
                    tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{part}.")}
                    learned = read_safetensors(self.output / f"{newest}.safetensors")
                    tensors |= {f"{part}.{k}": v for k, v in learned.items()}
            fill(network, tensors, path)
            networks.append(network)
        folder = Path(self.section.get("folder", self.output / "bundle"))
        save_editor(folder, config, *networks)
        return folder

    def rollout(self) -> Path:
        raise UserError("rollout needs clips in memory: name it in the stages of whole, run that")

    def whole(self) -> Path:
        from egoedit_ros.train.whole import Whole

        return Whole(self, self.section).run()

    # --- what they share -----------------------------------------------------

    def part(self, stage: str) -> _Work:
        """The same recipe's work at another stage."""
        section = self.recipe.get(stage) or {}
        if not isinstance(section, dict):
            raise UserError(f"{stage} of the recipe must be a table of settings")
        part = _Work(stage, self.config, dict(section), self.folders)
        part.watch, part.recipe = self.watch, self.recipe
        return part

    def path(self, name: str) -> Path | None:
        """A file that the section names; taken out of it. Raises UserError if it is not there."""
        value = self.section.pop(name, None)
        if value is None:
            return None
        path = Path(value)
        if not path.is_file():
            raise UserError(f"{self.stage}: no {name} at {path}; run the stage that makes it first")
        return path

    def flow_values(self, rest: dict) -> dict:
        values = {"latents": self.folders["latents"]} | rest
        for name in ("views", "sources", "edit_weights"):
            given = rest.get(name) or ()
            if not isinstance(given, (list, tuple)):
                raise UserError(f"{self.stage}: {name} must be a list")
            values[name] = tuple(given)
        return values

    def _sampler(self):
        """What makes samples while the stage runs, where its section has ``samples``."""
        values = self.section.pop("samples", None)
        if not values:
            if self.section.get("sample_every"):
                raise UserError(f"{self.stage}: sample_every without samples; say what to sample")
            return None
        if not isinstance(values, dict):
            raise UserError(f"{self.stage}: samples must be a table of settings")
        return self._sampler_of(values, self.output / f"{self.stage}.samples")

    def _sampler_of(self, values: dict, folder: Path):
        from egoedit_ros.train.samples import Sampler, SampleSettings

        values = dict(values)
        name = values.pop("autoencoder", "autoencoder")
        clips = values.pop("clips", self.folders.get("validation"))
        if clips is None:
            raise UserError(f"{self.stage}: name the clips to sample, or folders: validation")
        given = {"clips": Path(clips), "autoencoder": self.output / f"{name}.safetensors"}
        return Sampler(build(SampleSettings, given | values), self.config, folder)

    def settings(self, usual: dict | None = None):
        """TrainSettings from the section, and what is left for the data."""
        from egoedit_ros.train.loop import TrainSettings

        own = {"output", "stage", "model", "config", "watch"}
        names = {f.name for f in dataclasses.fields(TrainSettings)} - own
        mine = _tuples({k: v for k, v in self.section.items() if k in names})
        rest = {k: v for k, v in self.section.items() if k not in names}
        given = {"output": self.output, "stage": self.stage, "model": self.config.name}
        given |= {"config": self.config, "watch": self.watch}
        return build(TrainSettings, given | (usual or {}) | mine), rest


def _tuples(values: dict) -> dict:
    if not isinstance(values, dict):
        raise UserError(f"{values!r} must be a table of settings")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def build(kind: type, values: dict):
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"the recipe does not fit: {error}") from None
