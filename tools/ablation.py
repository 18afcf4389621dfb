# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations in small: commands add rows to a JSON file, ``tables`` writes docs.

    python tools/ablation.py teacher FLOW.safetensors --autoencoder AE.safetensors --clips 60
    python tools/ablation.py streams MODEL_FOLDER --name rollout --chunks 1,3 --steps 1,2,4
    python tools/ablation.py pairs --latents LATENTS --validation LATENTS --minutes 5
    python tools/ablation.py limits egoedit_ros/weights/edge --name bundled
    python tools/ablation.py tables

Rows go to docs/ablation.json, tables and plots to docs/ablation.md and docs/ablation.png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from egoedit_ros.bench.provenance import provenance  # noqa: E402
from egoedit_ros.bench.simulator_metrics import (  # noqa: E402
    FEWEST_PIXELS,
    METRICS,
    edited_pixels,
    frame_gain,
)

DOCS = ROOT / "docs"
ROWS = DOCS / "ablation.json"
FPS = 16
UNUSED_SEEDS = 500_000  # neither training nor any suite has them
LONG_SEEDS = 1_000_500  # of the long streams: evaluation seeds that no suite uses


def add_rows(kind: str, rows: list[dict], given: argparse.Namespace) -> None:
    """Put rows in the place of those of the same kind and name."""
    content = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    kept = [r for r in content.get(kind, []) if r["name"] not in {row["name"] for row in rows}]
    command = shlex.join(["python", "tools/ablation.py", *sys.argv[1:]])
    made = [row | {"command": command, "host": provenance({}, None)["host"]} for row in rows]
    content[kind] = sorted(kept + made, key=lambda row: row["name"])
    ROWS.write_text(json.dumps(content, indent=1) + "\n")


# --- the bidirectional teacher, as the simulator suite sees it -----------------------------------


def teacher(given: argparse.Namespace) -> None:
    """Suite figures of the bidirectional editor: whole clips, many Euler steps, guidance."""
    import torch
    from tqdm import tqdm

    from egoedit_ros.bench.simulator_suite import run_suite, summarise
    from egoedit_ros.model.autoencoder import build_autoencoder
    from egoedit_ros.model.checkpoint import fill, read_safetensors
    from egoedit_ros.model.config import get_config
    from egoedit_ros.model.transformer import Transformer
    from egoedit_ros.stream.edit_session import EditModel, EditSession
    from egoedit_ros.train.samples import SampleSettings, edit_latents

    config = get_config("edge")
    net, autoencoder = Transformer(config.transformer), build_autoencoder(config.autoencoder)
    for network, path in ((net, given.weights), (autoencoder, given.autoencoder)):
        fill(network, read_safetensors(path), path)
        network.eval().requires_grad_(False)
    model = EditModel(config, net, autoencoder, torch.device("cpu"), torch.float32)
    told = SampleSettings(
        Path(), given.autoencoder, "euler", steps=given.steps, guidance=given.guidance
    )

    class Whole(EditSession):
        """A session whose one chunk is the suite's whole clip."""

        def set_instruction(self, text: str, seed: int = 0) -> None:
            self.words = text
            super().set_instruction(text, seed)

        def denoise(self, work):
            made = edit_latents(self.model.transformer, config, work.latents, self.words, told)
            work.edited = made[0]
            return work

    session = Whole(model, chunk_latents=5, nfe=1)
    clips = list(tqdm(run_suite(session, given.clips), total=given.clips, unit="clip"))
    content = summarise([clip.row for clip in clips])
    name = f"{given.steps} steps, guidance {given.guidance:g}"
    row = {"name": name, "clips": given.clips, **content["mean"], "tasks": content["tasks"]}
    add_rows("teacher", [row], given)
    print({k: content["mean"][k] for k in METRICS})


# --- long streams ---------------------------------------------------------------------------------


def streams(given: argparse.Namespace) -> None:
    """A minute of edited stream: does it drift, do chunk borders show, how fast is it."""
    from egoedit_ros.stream.edit_session import EditSession, load_model
    from egoedit_ros.stream.session import frames_in_chunk

    films = [_film(given, index) for index in range(given.streams)]
    model = load_model(given.model, "cpu")
    if given.plain:
        plain = replace(model.config, steady=(), sharpen=False)
        model = replace(model, config=plain, detail=None)
    rows = []
    for chunk in _numbers(given.chunks):
        for steps in _numbers(given.steps):
            parts, taken, count = [], 0.0, 0
            for source, target, text in films:
                session = EditSession(model, chunk_latents=chunk, nfe=steps)
                session.set_instruction(text, 0)
                made, begin, borders = [], 0, []
                while begin + (need := frames_in_chunk(chunk, begin == 0)) <= len(source):
                    start = time.perf_counter()
                    made.append(session.run(source[begin : begin + need]).frames)
                    taken, count = taken + time.perf_counter() - start, count + need
                    begin += need
                    borders.append(begin)
                parts.append(
                    _measure(source[:begin], target[:begin], np.concatenate(made), borders)
                )
            row = {k: float(np.mean([p[k] for p in parts])) for k in parts[0]}
            row |= {"name": f"{given.name}, chunk {chunk}, {steps} steps", "weights": given.name}
            row |= {"chunk": chunk, "steps": steps, "streams": len(films), "fps": count / taken}
            row |= {"seconds": given.seconds, "kept": row["last"] / row["first"]}
            print({k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()}, flush=True)
            rows.append(row)
            add_rows("streams", rows, given)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _film(given: argparse.Namespace, index: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Source, target and instruction of a long stream, rendered once and kept."""
    from egoedit_ros.data.sim.render import Simulator
    from egoedit_ros.data.sim.scene import draw_edits, draw_scene

    count = 1 + 12 * (given.seconds * FPS // 12)  # chunks of 3 latent frames leave out the last 4
    scene = draw_scene(LONG_SEEDS + index, given.seconds + 1)
    edit = draw_edits(scene, 3)[index % 3]
    kept = given.work / f"{scene.seed}_{count}.npz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        simulator = Simulator()
        clip = simulator.render_clip(scene, [edit], count)
        simulator.close()
        np.savez(kept, source=clip.source, target=clip.targets[0])
    with np.load(kept) as file:
        return file["source"], file["target"], edit.instruction


def _measure(
    source: np.ndarray, target: np.ndarray, edited: np.ndarray, borders: list[int]
) -> dict[str, float]:
    """ssim_gain of the first and last 10 s and of all; edit_gain; jumps at chunk borders over those
    inside chunks, relative to the target's own."""
    mask = edited_pixels(source, target)
    gains = [
        frame_gain(s, t, e, m) for s, t, e, m in zip(source, target, edited, mask, strict=True)
    ]
    ten = 10 * FPS
    seen = lambda part: float(np.mean([g for g in part if g is not None]))  # noqa: E731
    goal = target[mask].astype(np.float64)
    before = ((source[mask] - goal) ** 2).sum()
    jumps = {}
    for name, video in (("edited", edited), ("target", target)):
        steps = []
        for now in range(1, len(video)):
            here = mask[now] & mask[now - 1]
            if here.sum() >= FEWEST_PIXELS:
                change = np.abs(video[now][here].astype(np.int16) - video[now - 1][here]).mean()
                steps.append((now in set(borders), change))
        jumps[name] = np.mean([c for b, c in steps if b]) / np.mean([c for b, c in steps if not b])
    return {
        "ssim_gain": seen(gains),
        "first": seen(gains[:ten]),
        "last": seen(gains[-ten:]),
        "edit_gain": float(1 - ((edited[mask] - goal) ** 2).sum() / before),
        "border": float(jumps["edited"] / jumps["target"]),
    }


# --- what the autoencoder allows -----------------------------------------------------------------


def limits(given: argparse.Namespace) -> None:
    """A model's streams beside its autoencoder alone, which gets the target's own latents."""
    import torch

    from egoedit_ros.bench.simulator_metrics import mean_of, score_clip
    from egoedit_ros.bench.simulator_suite import stream_clip
    from egoedit_ros.data.sim.render import Simulator
    from egoedit_ros.data.sim.scene import draw_edits, draw_scene
    from egoedit_ros.stream.edit_session import EditSession, load_model

    model = load_model(given.model, "cpu", torch.float32)  # _exact() encodes in it
    session, simulator = EditSession(model), Simulator()
    rows: dict[str, list[dict]] = {"streams": [], "exact latents": []}
    tasks: list[str] = []
    for seed in range(UNUSED_SEEDS, UNUSED_SEEDS + given.scenes):
        scene = draw_scene(seed, 1.0)
        edits = draw_edits(scene, 3)
        clip = simulator.render_clip(scene, edits, 17)
        for edit, target in zip(edits, clip.targets, strict=True):
            tasks.append(edit.task)
            streamed = stream_clip(session, clip.source, edit.instruction, 0)
            for name, edited in (
                ("streams", streamed),
                ("exact latents", _exact(model.autoencoder, clip.source, target)),
            ):
                rows[name].append(score_clip(clip.source, target, edited, clip.hand))
    simulator.close()
    made = []
    for name, scores in rows.items():
        by_task = [
            mean_of([s for s, t in zip(scores, tasks, strict=True) if t == task])
            for task in dict.fromkeys(tasks)
        ]
        made.append({"name": f"{given.name}: {name}", "edits": len(tasks)} | mean_of(by_task))
    jumps = []
    for index in range(2):
        source, target, _ = _film(given, index)
        source, target = source[321:481], target[321:481]  # ten seconds, whole latent frames
        edited = _exact(model.autoencoder, source, target, first=False)
        jumps.append(_measure(source, target, edited, list(range(4, 161, 4)))["border"])
    made[1] |= {"borders": " and ".join(f"{jump:.1f}" for jump in jumps)}
    made[0] |= {"borders": "-"}
    print(made)
    add_rows("limits", made, given)


def _exact(autoencoder, source: np.ndarray, target: np.ndarray, first: bool = True) -> np.ndarray:
    """The target through the autoencoder, decoded beside the source as an edit is."""
    import torch

    from egoedit_ros.model.autoencoder import composite
    from egoedit_ros.train.latents import to_pixels

    stream = autoencoder.open_stream()
    with torch.inference_mode():
        camera, wanted = to_pixels(source)[0], to_pixels(target)[0]
        beside = stream.encode(camera, first)
        frames, logits = stream.decode(stream.encode(wanted, first).latents, beside)
        mask = torch.sigmoid(logits.float())[None]
        made = composite(frames.float()[None], mask, camera[None])[0].clamp(-1, 1)
    return ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


# --- how much object-change data ------------------------------------------------------------------


def pairs(given: argparse.Namespace) -> None:
    """Table 3 in small: a share of the object-change pairs beside all others, from nothing."""
    import torch

    from egoedit_ros.data.latents import LatentFolder
    from egoedit_ros.model.config import get_config
    from egoedit_ros.model.transformer import Transformer
    from egoedit_ros.train.batches import FlowData, sample_batch
    from egoedit_ros.train.denoise import Denoiser
    from egoedit_ros.train.flow import train_flow
    from egoedit_ros.train.loop import TrainSettings

    base = get_config("edge")
    sizes = replace(base.transformer, layers=4, heads=3, ffn_dim=768)
    config = replace(base, name="small", transformer=sizes)
    change = "recolour,replace"
    rows = []
    for share in given.shares:
        sources = [{"latents": given.latents, "weight": 1.0, "tasks": "remove", "name": "others"}]
        if share:
            more = {"latents": given.latents, "weight": 2.0, "tasks": change, "share": share}
            sources.append(more | {"name": "object change"})
        view = {"frames": 1, "crop": 10, "batch": 64}
        data = FlowData(
            Path(given.latents), sources=tuple(sources), mask_layer=2, workers=1, pure_noise=0.6,
            edited_weight=6.0, **view,
        )  # fmt: skip
        settings = TrainSettings(
            given.work / f"share_{share:g}", "flow", "small", steps=10**6, minutes=given.minutes,
            lr=0.002, warmup=30, optimizer="muon", seed=31, ema=0.99, config=config, save_every=500,
            log_every=5,
        )  # fmt: skip
        path = train_flow(settings, data)
        from egoedit_ros.model.checkpoint import fill, read_safetensors

        net = Transformer(sizes).eval().requires_grad_(False)
        fill(net, read_safetensors(path), path)
        row = {"name": f"{100 * share:3.0f} %", "share": share, "minutes": given.minutes}
        row["steps"] = json.loads(
            (settings.output / "flow.log.jsonl").read_text().splitlines()[-1]
        )["step"]
        for task in ("recolour", "replace", "remove"):
            clips = list(LatentFolder(Path(given.validation), (task,)))
            rng, noise = np.random.default_rng(5), torch.Generator().manual_seed(5)
            told = FlowData(Path(given.validation), batch=256, frames=1, crop=10)
            batch = sample_batch(rng, clips, told)
            with torch.no_grad():
                denoise = Denoiser(net, config, batch.source, batch.text, batch.corners)
                start = torch.randn(batch.source.shape, generator=noise)
                made = denoise(start, torch.ones(len(start), 1))
            inside = batch.edited.unsqueeze(2)
            error = ((made - batch.target).square() * inside).sum()
            row[task] = float(1 - error / ((batch.source - batch.target).square() * inside).sum())
        print(row, flush=True)
        rows.append(row)
        add_rows("pairs", rows, given)


# --- tables ---------------------------------------------------------------------------------------


def tables(given: argparse.Namespace) -> None:
    """Write docs/ablation.md's tables and the plots."""
    content = json.loads(ROWS.read_text())
    path = DOCS / "ablation.md"
    text = path.read_text(encoding="utf-8")
    columns = {
        "teacher": ("name", "clips", *METRICS),
        "streams": ("weights", "chunk", "steps", "ssim_gain", "first", "last", "kept", "edit_gain",
                    "border", "fps"),
        "limits": ("name", "edits", *METRICS, "borders"),
        "pairs": ("name", "steps", "recolour", "replace", "remove"),
    }  # fmt: skip
    for kind, names in columns.items():
        rows = content.get(kind)
        if not rows:
            continue
        lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(_cell(row[n]) for n in names) + " |" for row in rows]
        commands = "\n".join(sorted({f"`{row['command']}`  " for row in rows}))
        cpu = f"{rows[0]['host']['cpu']}, {rows[0]['host']['cores']} cores"
        start, end = f"<!-- {kind} -->\n", f"<!-- /{kind} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = before + start + "\n".join(lines) + f"\n\n{cpu}.\n{commands}\n" + end + after
    path.write_text(text, encoding="utf-8")
    _plot(content)


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def _plot(content: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    rows = sorted(content.get("pairs", []), key=lambda row: row["share"])
    for task in ("recolour", "replace", "remove"):
        left.plot([100 * r["share"] for r in rows], [r[task] for r in rows], "o-", label=task)
    left.set_xlabel("% of the object-change pairs")
    left.set_ylabel("latent gain, unseen clips")
    rows = content.get("streams", [])
    for weights, chunk in sorted({(r["weights"], r["chunk"]) for r in rows}):
        mine = [r for r in rows if (r["weights"], r["chunk"]) == (weights, chunk)]
        mine.sort(key=lambda row: row["steps"])
        label = f"{weights}, chunk {chunk}"
        right.plot([r["steps"] for r in mine], [r["ssim_gain"] for r in mine], "o-", label=label)
    right.set_xlabel("steps")
    right.set_ylabel("ssim_gain, a minute of stream")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "ablation.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("teacher")
    one.add_argument("weights", type=Path)
    one.add_argument("--autoencoder", type=Path, required=True)
    one.add_argument("--clips", type=int, default=60)
    one.add_argument("--steps", type=int, default=40)
    one.add_argument("--guidance", type=float, default=1.5)
    one.set_defaults(run=teacher)
    one = commands.add_parser("streams")
    one.add_argument("model")
    one.add_argument("--name", required=True)
    one.add_argument("--chunks", default="1,3")
    one.add_argument("--steps", default="1,2,4")
    one.add_argument("--streams", type=int, default=3)
    one.add_argument("--seconds", type=int, default=60)
    one.add_argument("--plain", action="store_true", help="leave the edit as the decoder made it")
    one.set_defaults(run=streams)
    one = commands.add_parser("pairs")
    one.add_argument("--latents", required=True)
    one.add_argument("--validation", required=True)
    one.add_argument("--shares", type=lambda s: [float(x) for x in s.split(",")],
                     default=[0.0, 0.25, 0.75, 1.0])  # fmt: skip
    one.add_argument("--minutes", type=float, default=5.0)
    one.set_defaults(run=pairs)
    one = commands.add_parser("limits")
    one.add_argument("model")
    one.add_argument("--name", required=True)
    one.add_argument("--scenes", type=int, default=8)
    one.set_defaults(run=limits, seconds=60)
    commands.add_parser("tables").set_defaults(run=tables)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
