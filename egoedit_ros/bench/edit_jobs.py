# SPDX-License-Identifier: Apache-2.0
"""One item of EgoEditBench: edit its source if need be, score the edit, keep what came of it.

Runs in worker processes. A folder ``work`` holds ``items/<data_id>.json``, ``edited/<data_id>.mp4``
and ``frames/<data_id>_<k>_before|after.jpg``; what is there and still holds is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from egoedit_ros.bench.grid import Pair, load_clip, pair_up
from egoedit_ros.bench.judge import judged_frames
from egoedit_ros.bench.metrics import clip as clip_metrics
from egoedit_ros.bench.metrics.score import PAPER_CHUNKS, Values, score_pair
from egoedit_ros.data.tables import BenchItem
from egoedit_ros.errors import UserError

# Goes up when a figure's definition changes, so that old results are not mixed with new ones.
VERSION = 1
MOST_FRAMES = 1000
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model of ours edits."""

    model: str = "edge"
    device: str = "auto"
    size: tuple[int, int] | None = None
    chunk_latents: int | None = None
    nfe: int | None = None
    output_size: str = "model"
    seed: int = 0
    runtime: str = "torch"


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """What to do with every item. ``model`` None: score files that are there.

    chunks: frames of an editor's first and other chunks; None: of the model, the paper's for
    files. clip, pickscore: weights, None where those figures are not wanted.
    """

    work: Path
    model: ModelSettings | None = None
    align: str = "auto"
    most_frames: int = MOST_FRAMES
    chunks: tuple[int, int] | None = None
    clip: clip_metrics.Weights | None = None
    pickscore: clip_metrics.Weights | None = None
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """An item with its files; ``edited`` None: to be made."""

    item: BenchItem
    task: str
    source: Path
    edited: Path | None
    notes: tuple[str, ...] = ()


def do_job(settings: SuiteSettings, job: Job) -> dict:
    """The item's results, or ``{'problem': why}``; raises UserError only for what ends the run."""
    import cv2

    cv2.setNumThreads(1)
    if settings.model or settings.clip or settings.pickscore:
        _set_threads(settings.threads)
    session = _session(settings.model, settings.threads) if settings.model else None
    result = {
        "data_id": job.item.data_id,
        "source_data_id": job.item.source_data_id,
        "task": job.task,
        "sub_task": job.item.sub_edit_task,
        "instruction": job.item.instruction,
    }
    try:
        edited, notes = (job.edited, []) if job.edited else _edited_by(session, settings, job)
        return result | _scored(settings, job, edited, [*job.notes, *notes])
    except UserError as error:
        return result | {"problem": str(error)}
    except Exception as error:  # one odd file must not end the hours of the others
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return result | {"problem": said[:300]}


def _scored(settings: SuiteSettings, job: Job, edited: Path, notes: list[str]) -> dict:
    kept_at = settings.work / "items" / f"{job.item.data_id}.json"
    files = [_stat(job.source), _stat(edited)]
    chunks = settings.chunks or _chunks(settings)
    about = [VERSION, files, job.task, settings.align, settings.most_frames]
    keys = {
        "local": _key(about, chunks),
        "clip": _key(about, settings.clip and settings.clip.place),
        "pickscore": _key(
            about, settings.pickscore and settings.pickscore.place, job.item.instruction
        ),
    }
    kept = _read(kept_at)
    parts: dict[str, dict] = {
        name: part
        for name, part in kept.get("parts", {}).items()
        if keys.get(name) == part.get("key") and part.get("complete")
    }
    pictures = kept.get("pictures", 0) if "local" in parts else 0
    if len(parts) < len(keys) or not _pictures_there(settings.work, job.item.data_id, pictures):
        clips = (load_clip(path, settings.most_frames) for path in (job.source, edited))
        pair = pair_up(*clips, settings.align)
        notes = [*notes, *pair.notes]
        pictures = _keep_pictures(settings.work, job.item.data_id, pair)
        if "local" not in parts:
            values, why = score_pair(pair, job.task, chunks)
            parts["local"] = {"values": values, "why": why, "complete": True}
        for name in ("clip", "pickscore"):
            if name not in parts:
                parts[name] = _clip_part(name, settings, pair, job.item.instruction)
        for name, part in parts.items():
            part["key"] = keys[name]
    else:
        notes = kept.get("notes", [])
    content = {"parts": parts, "pictures": pictures, "notes": notes}
    write_json(kept_at, content)
    values: Values = {}
    why: dict[str, str] = {}
    for part in parts.values():
        values |= part["values"]
        why |= part["why"]
    return {"values": values, "why": why, "pictures": pictures, "notes": notes}


def _clip_part(name: str, settings: SuiteSettings, pair: Pair, instruction: str) -> dict:
    metric, weights = {
        "clip": ("clip_consistency", settings.clip),
        "pickscore": ("pickscore", settings.pickscore),
    }[name]
    if weights is None:
        return {"values": {metric: None}, "why": {metric: "not asked for"}, "complete": False}
    try:
        model = clip_metrics.load_clip(weights, name == "pickscore", settings.device)
    except clip_metrics.Unavailable as error:
        return {"values": {metric: None}, "why": {metric: str(error)}, "complete": False}
    if name == "clip":
        value = clip_metrics.temporal_consistency(model, pair.edited)
    else:
        value = clip_metrics.pick_score(model, pair.edited, instruction)
    return {"values": {metric: value}, "why": {}, "complete": True}


def picture_paths(work: Path, data_id: str, number: int) -> tuple[Path, Path]:
    """Where the before and after of a judged frame are."""
    stem = work / "frames" / f"{data_id}_{number}"
    return stem.with_name(stem.name + "_before.jpg"), stem.with_name(stem.name + "_after.jpg")


def _pictures_there(work: Path, data_id: str, count: int) -> bool:
    paths = [p for k in range(count) for p in picture_paths(work, data_id, k)]
    return bool(paths) and all(p.exists() for p in paths)


def _keep_pictures(work: Path, data_id: str, pair: Pair) -> int:
    """Write the pairs that the judge and the report look at; returns how many."""
    from egoedit_ros.stream.images import encode_jpeg

    indices = judged_frames(len(pair.source))
    for number, index in enumerate(indices):
        pictures = pair.source[index], pair.edited[index]
        for path, rgb in zip(picture_paths(work, data_id, number), pictures, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.part")
            part.write_bytes(bytes(encode_jpeg(rgb, JPEG_QUALITY)))
            part.replace(path)
    return len(indices)


def _edited_by(session, settings: SuiteSettings, job: Job) -> tuple[Path, list[str]]:
    """The source edited by our model, as a file; made only once for the same settings."""
    model = settings.model
    output = settings.work / "edited" / f"{job.item.data_id}.mp4"
    note = output.with_suffix(".json")
    key = _key(
        VERSION,
        asdict(model),
        _weights_stat(model.model),
        _stat(job.source),
        job.item.instruction,
        settings.most_frames,
    )
    kept = _read(note)
    if kept.get("key") != key or not output.exists():
        start = time.monotonic()
        frames, faults = edit_video(
            session, job.source, job.item.instruction, output, model, settings.most_frames
        )
        seconds = round(time.monotonic() - start, 2)
        kept = {"key": key, "frames": frames, "faults": faults, "seconds": seconds}
        write_json(note, kept)
    faults = kept.get("faults", 0)
    return output, [f"the model failed on {faults} chunks, passed through"] if faults else []


def edit_video(
    session, source: Path, instruction: str, output: Path, model: ModelSettings, most: int
) -> tuple[int, int]:
    """Stream a video through a session into a file. Returns (frames, chunks that failed)."""
    from egoedit_ros.data.video import VideoReader, VideoWriter
    from egoedit_ros.stream.editor import StreamEditor
    from egoedit_ros.stream.types import Frame, Instruction, StreamSettings

    editor = StreamEditor(session, StreamSettings(size=session.size, output_size=model.output_size))
    editor.reset()
    editor.set_instruction(Instruction("item", instruction, model.seed))
    reader = VideoReader(source)
    writer: VideoWriter | None = None
    try:

        def write(done: list) -> None:
            nonlocal writer
            for one in done:
                if writer is None:
                    size = one.image.shape[1], one.image.shape[0]
                    writer = VideoWriter(output, size, reader.fps, reader.time_base)
                writer.write(one.frame.stamp_ns, one.image)

        for number, (stamp, rgb) in enumerate(reader):
            if number == most:
                break
            write(editor.push(Frame(stamp, rgb, time.perf_counter_ns())))
        write(editor.flush())
        if writer is None:
            raise UserError(f"{source} holds no frame that decodes")
        writer.close()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    return writer.count, editor.fault_count


@lru_cache(maxsize=1)
def _session(model: ModelSettings, threads: int):
    from egoedit_ros.stream.session import open_session

    return open_session(
        model.model,
        model.device,
        model.size,
        model.chunk_latents,
        model.nfe,
        threads=threads,
        runtime=model.runtime,
    )


def _chunks(settings: SuiteSettings) -> tuple[int, int]:
    if settings.model is None:
        return PAPER_CHUNKS
    from egoedit_ros.stream.session import frames_in_chunk

    latents = _session(settings.model, settings.threads).chunk_latents
    return frames_in_chunk(latents, True), frames_in_chunk(latents, False)


def _set_threads(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _weights_stat(model: str) -> list:
    """What tells one model from another: names, sizes and times of the files of its weights and
    configuration, and of those that its editor.json names elsewhere."""
    from egoedit_ros.model.own import PARTS, own_description
    from egoedit_ros.model.tensor_files import PICKLES
    from egoedit_ros.stream.edit_session import BUNDLED

    place = next((p for p in (BUNDLED / model, Path(model)) if p.exists()), None)
    if place is None:
        return [model]
    places = [place]
    folder, values = own_description(place) or (place, {})
    for part in PARTS:
        named = values.get(part, ())
        places += [folder / name for name in ([named] if isinstance(named, str) else named)]
    files: set[Path] = set()
    for one in places:
        inner = one.rglob("*") if one.is_dir() else [one]
        files |= {p.resolve() for p in inner if p.suffix in (".safetensors", ".json", *PICKLES)}
    return [_stat(path) for path in sorted(files) if path.is_file()]


def _stat(path: Path) -> list:
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)
