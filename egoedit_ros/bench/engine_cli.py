# SPDX-License-Identifier: Apache-2.0
"""``bench engine``: its options, what it runs, and the table that it prints."""

from __future__ import annotations

import argparse

from egoedit_ros.cli.common import add_runtime_option, positive_whole

FPS_NFE = (2, 4)  # beside the model's own
BLEND_CHUNKS = 2  # of the blend that is measured


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench engine`` beside the output's."""
    parser.add_argument("--model", default="edge", metavar="edge|NAME|PATH")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add_runtime_option(parser)
    parser.add_argument("--threads", type=positive_whole, metavar="N", help="default: torch's")
    parser.add_argument("--soak", type=positive_whole, metavar="N", help="also run N chunks")


def run(args: argparse.Namespace) -> tuple[dict, list]:
    """All figures of the engine, and the rows to print."""
    import gc

    from tqdm import tqdm

    from egoedit_ros.bench import engine
    from egoedit_ros.bench.provenance import provenance
    from egoedit_ros.stream.session import open_session

    def session_of(nfe: int | None = None, **options):
        return open_session(
            args.model, args.device, nfe=nfe, threads=args.threads, runtime=args.runtime, **options
        )

    session = session_of()
    steps = sorted({*FPS_NFE, getattr(session, "nfe", FPS_NFE[0])})
    fps = {str(nfe): engine.measure_fps(session_of(nfe)) for nfe in steps}
    content: dict = {
        "speedup_vs_recompute": None,
        "edge_fps": fps,
        "edge_fps_everywhere": engine.measure_fps(session, everywhere=True),
        "edge_nfe": getattr(session, "nfe", 0),
        "edge_first_frame_ms": engine.measure_first_frame_ms(session),
        "edge_memory_bytes": engine.resident_bytes(),
    }
    rows = [(f"frames/s at {n} NFE", f"{v:.1f}") for n, v in fps.items()]
    rows += [
        ("  an edit all over the picture", f"{content['edge_fps_everywhere']:.1f}"),
        ("default NFE", content["edge_nfe"]),
        ("first frame, direct call", f"{content['edge_first_frame_ms']:.0f} ms"),
        ("memory", f"{content['edge_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    if hasattr(session, "model"):
        rows += _speedup(session, content)
        if session.device == "cpu" and args.runtime == "torch":
            rows += _overlap(session, content)
        rows += _switch(session_of, content, args.runtime)
    if args.soak:
        session = session_of()
        gc.collect()  # what the measurements above leave must not fall to the soak
        with tqdm(total=args.soak, desc="soak", unit="chunk", mininterval=1.0) as bar:
            soak = engine.soak(session, args.soak, lambda done: bar.update(done - bar.n))
        content["soak"] = soak
        low, high = sorted(soak["load"])
        rows += [
            ("soak, time ratio", f"{soak['time_ratio']:.3f} ({soak['cpu_time_ratio']:.3f} in the "
             f"processor's time; load {low:.1f} to {high:.1f})"),
            ("soak, memory growth", f"{soak['memory_growth_bytes'] / 2**20:.1f} MiB, at the end "
             f"{soak['memory_bytes'] / 2**20:.0f} MiB"),
        ]  # fmt: skip
    content |= provenance(_config(session, args), None)
    return content, rows


def _config(session, args: argparse.Namespace) -> dict:
    from torch import get_num_threads

    model = getattr(session, "model", None)
    return {
        "model": session.name,
        "device": session.device,
        "runtime": args.runtime,
        "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        "threads": get_num_threads(),
        "size": f"{session.size[0]}x{session.size[1]}",
        "chunk_latents": session.chunk_latents,
        "nfe": getattr(session, "nfe", 0),
    }


def _speedup(session, content: dict) -> list[tuple[str, object]]:
    """Ours against diffusers' transformer recomputing the window, on the same weights."""
    from egoedit_ros.bench.recompute import measure_speedup

    figures = measure_speedup(session.model, session.size)
    content["speedup_vs_recompute"] = figures["speedup"]
    content["recompute"] = figures
    agree = "agree" if figures["difference"] <= figures["tolerance"] else "DO NOT AGREE"
    return [
        ("against recomputing", f"{figures['speedup']:.2f} times faster"),
        ("  a chunk of 3 latents", f"{figures['cached_ms']:.0f} ms, recomputing "
         f"{figures['recompute_ms']:.0f} ms (4 NFE, window of 5 chunks)"),
        ("  both ways", f"{agree}: difference {figures['difference']:.1g} in float32, masked"),
    ]  # fmt: skip


def _switch(session_of, content: dict, runtime: str) -> list[tuple[str, object]]:
    """What a new instruction costs, for each way to take it."""
    from egoedit_ros.bench.engine import measure_switch

    sessions = {"at_once": session_of(), "recache": session_of(recache=True)}
    if runtime == "torch":
        sessions["blend"] = session_of(blend_chunks=BLEND_CHUNKS)
    figures = measure_switch(sessions)
    content["instruction_switch"] = figures | {"blend_chunks": BLEND_CHUNKS}
    return [
        ("a new instruction", f"{figures['text_ms']:.0f} ms for its text; then the chunk, of "
         f"{figures['chunk_ms']:.0f} ms, takes longer by"),
        *((f"  {name.replace('_', ' ')}", f"{figures[f'{name}_ms']:.0f} ms") for name in sessions),
    ]  # fmt: skip


def _overlap(session, content: dict) -> list[tuple[str, object]]:
    """Throughput with stages overlapped, for each way to share the cores."""
    from egoedit_ros.runtime.cpu import best_split
    from egoedit_ros.runtime.film import INSTRUCTION

    session.reset()
    session.set_instruction(INSTRUCTION, 0)
    best, figures = best_split(session, chunks=24)
    content["overlap"] = {"best": best.name, "fps": figures}
    return [(f"frames/s, {name}", f"{fps:.1f}") for name, fps in figures.items()]
