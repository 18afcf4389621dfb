# SPDX-License-Identifier: Apache-2.0
"""``egoedit train STAGE --config FILE``: the stages that make the ``edge`` weights."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from egoedit_ros.errors import UserError

STAGES = {
    "autoencoder": "learn to code pictures and to decode an edit beside its source",
    "latents": "encode the clips once for the transformer",
    "flow": "rectified flow with teacher forcing, block-causal",
    "flow_whole": "the same on whole frames, from the weights of flow",
    "decoder": "teach the decoder what the transformer gives it",
    "bundle": "put the trained networks into a model folder",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("train", help="the training stages")
    parser.add_argument(
        "stage", choices=STAGES, help="; ".join(f"{k}: {v}" for k, v in STAGES.items())
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the recipe")
    parser.add_argument(
        "--minutes", type=float, help="stop after so long, in place of the recipe's"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    recipe = read_recipe(args.config)
    section = recipe.get(args.stage) or {}
    if not isinstance(section, dict):
        raise UserError(f"{args.config}: {args.stage} must be a table of settings")
    if args.minutes is not None:
        section["minutes"] = args.minutes
    named = recipe.get("folders") or {}
    for name in ("output", "clips", "latents"):
        if name not in named:
            raise UserError(f"{args.config} names no folder '{name}'; add it under folders")
    folders = {name: Path(path) for name, path in named.items()}
    model = recipe.get("model", "edge")
    if args.stage == "autoencoder":
        from egoedit_ros.train.autoencoder import AutoencoderData, train_autoencoder

        settings, rest = _settings(args.stage, model, folders["output"], section)
        data = _build(AutoencoderData, {"clips": folders["clips"]} | rest)
        print(train_autoencoder(settings, data))
    elif args.stage == "latents":
        _latents(folders, model)
    elif args.stage in ("flow", "flow_whole"):
        from egoedit_ros.train.flow import FlowData, train_flow

        start = section.pop("start", None)
        settings, rest = _settings(args.stage, model, folders["output"], section)
        rest["views"] = tuple(rest.get("views", ()))
        data = _build(FlowData, {"latents": folders["latents"]} | rest)
        print(train_flow(settings, data, Path(start) if start else None))
    elif args.stage == "decoder":
        from egoedit_ros.train.decoder import DecoderData, train_decoder

        settings, rest = _settings(args.stage, model, folders["output"], section)
        given = {
            "clips": folders["clips"],
            "transformer": folders["output"] / f"{rest.pop('transformer', 'flow')}.safetensors",
            "autoencoder": folders["output"] / "autoencoder.safetensors",
        }
        print(train_decoder(settings, _build(DecoderData, given | rest)))
    else:
        _bundle(folders["output"], model, section)
    return 0


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


def _settings(stage: str, model: str, output: Path, section: dict):
    """TrainSettings from the section, and what is left for the data."""
    from egoedit_ros.train.loop import TrainSettings

    names = {f.name for f in dataclasses.fields(TrainSettings)} - {"output", "stage", "model"}
    mine = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k in names}
    rest = {k: v for k, v in section.items() if k not in names}
    return _build(TrainSettings, {"output": output, "stage": stage, "model": model} | mine), rest


def _build(kind: type, values: dict):
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"the recipe does not fit: {error}") from None


def _latents(folders: dict[str, Path], model: str) -> None:
    from tqdm import tqdm

    from egoedit_ros.model.config import get_config
    from egoedit_ros.train.latents import cache_latents

    checkpoint = folders["output"] / "autoencoder.safetensors"
    work = cache_latents(checkpoint, get_config(model), folders["clips"], folders["latents"])
    with tqdm(unit="clip") as bar:
        for done, total in work:
            bar.total = total
            bar.update(done - bar.n)


def _bundle(output: Path, model: str, section: dict) -> None:
    from egoedit_ros.model.autoencoder import EdgeAutoencoder
    from egoedit_ros.model.checkpoint import fill, read_safetensors, save_editor
    from egoedit_ros.model.config import get_config
    from egoedit_ros.model.transformer import Transformer

    config = get_config(model)
    networks = []
    for kind, shape, name in (
        (Transformer, config.transformer, section.get("transformer", "flow")),
        (EdgeAutoencoder, config.autoencoder, section.get("autoencoder", "autoencoder")),
    ):
        network, path = kind(shape), output / f"{name}.safetensors"
        fill(network, read_safetensors(path), path)
        networks.append(network)
    folder = Path(section.get("folder", output / "bundle"))
    save_editor(folder, config, *networks)
    print(folder)
