# SPDX-License-Identifier: Apache-2.0
"""``egoedit plan``: how fast a model will be on a GPU, and how far to believe it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from egoedit_ros.cli.common import model_size, positive_number, positive_whole, table
from egoedit_ros.errors import UserError

AUTOENCODERS = ("wan", "wan+taehv", "taehv")
GPU_NAMES = ("h100", "h200", "b200", "rtx5090")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "plan", help="predict fps, latency and memory of a model on a GPU"
    )
    parser.add_argument("--model", default="egoedit-10b", metavar="NAME", help="a configuration")
    parser.add_argument("--gpu", default="h100", choices=GPU_NAMES)
    parser.add_argument("--size", metavar="WxH", help="default: the model's own")
    parser.add_argument("--nfe", type=positive_whole, metavar="N")
    parser.add_argument("--chunk-latents", type=positive_whole, metavar="N")
    parser.add_argument("--window-chunks", type=positive_whole, metavar="N")
    parser.add_argument("--autoencoder", choices=AUTOENCODERS, help="default: the model's own")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp8"))
    parser.add_argument("--overlap", default="none", choices=("none", "full"))
    parser.add_argument(
        "--patch", type=int, choices=(2, 4), help="side of a token in latent pixels; default: 2"
    )
    parser.add_argument("--fps", type=positive_number, metavar="F", help="of the camera")
    parser.add_argument(
        "--no-measure", action="store_true", help="leave out the check on this machine's CPU"
    )
    parser.add_argument(
        "--training", action="store_true", help="plan the paper's training stages instead"
    )
    parser.add_argument(
        "--gpus", type=positive_whole, default=64, metavar="N", help="of --training; default: 64"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.json and args.json.exists() and not args.overwrite:
        raise UserError(f"{args.json} exists; choose another file or add --overwrite")
    from egoedit_ros.runtime import plan
    from egoedit_ros.runtime.roofline import GPUS

    config = _config(args)
    if args.training:
        from egoedit_ros.cli.plan_training import show_training

        content = {"training": show_training(config, GPUS[args.gpu], args.gpus)}
        _write(args, config, content)
        return 0
    device = plan.calibrated(GPUS[args.gpu])
    got = plan.predict(config, device, args.precision, args.overlap)
    content: dict = {"prediction": dataclasses.asdict(got), "gpu": dataclasses.asdict(device)}
    _show_prediction(args, config, device, got)
    content["paper_check"] = plan.paper_check()
    _show_paper(content["paper_check"])
    if config.autoencoder.latent_channels == 16:
        content["what_would_beat"] = plan.what_would_beat(config, device)
        _show_beating(content["what_would_beat"], device.name, config)
    if not args.no_measure:
        from egoedit_ros.runtime.plan_measure import cpu_check

        content["cpu_check"] = cpu_check()
        _show_cpu(content["cpu_check"])
    _write(args, config, content)
    return 0


def _write(args: argparse.Namespace, config, content: dict) -> None:
    if args.json:
        from egoedit_ros.bench.provenance import provenance
        from egoedit_ros.bench.report import write_json

        asked = {"editor": config.to_dict(), "gpu": args.gpu, "precision": args.precision,
                 "overlap": args.overlap}  # fmt: skip
        write_json(provenance(asked, None) | content, args.json)


def _config(args: argparse.Namespace):
    from egoedit_ros.model.config import get_config

    config = get_config(args.model)
    if args.autoencoder:
        if config.autoencoder.latent_channels != 16:
            raise UserError(f"{config.name} has its own autoencoder; leave out --autoencoder")
        autoencoder = dataclasses.replace(config.autoencoder, kind=args.autoencoder)
        config = dataclasses.replace(config, autoencoder=autoencoder)
    if args.patch:
        transformer = dataclasses.replace(config.transformer, patch=(1, args.patch, args.patch))
        config = dataclasses.replace(config, transformer=transformer)
    asked = {
        "size": model_size(args.size),
        "nfe": args.nfe,
        "chunk_latents": args.chunk_latents,
        "window_chunks": args.window_chunks,
        "fps": args.fps,
    }
    return dataclasses.replace(config, **{k: v for k, v in asked.items() if v is not None})


def _show_prediction(args: argparse.Namespace, config, device, got) -> None:
    side = 8 * config.transformer.patch[1]
    tokens = config.size[0] * config.size[1] // side**2
    print(
        f"{config.name} at {config.size[0]}x{config.size[1]} on one {device.name}: "
        f"{config.chunk_latents} latents a chunk ({tokens} tokens each), window "
        f"{config.window_chunks} chunks, {config.nfe} NFE, autoencoder {config.autoencoder.kind}, "
        f"{args.precision}, overlap {args.overlap}"
    )
    rows: list[tuple[str, object]] = []
    for name in ("encode", "denoise", "settle", "decode"):
        first = f"{got.first[f'{name}_ms']:8.1f}" if name != "settle" else " " * 8
        rows.append((f"{name}, ms", f"{first} first chunk {got.steady[f'{name}_ms']:8.1f} steady"))
    memory = got.memory_bytes
    note = "" if memory["total"] <= device.memory else "  (more than the GPU has)"
    rows += [
        ("recording, ms", f"{got.first['recording_ms']:8.1f} first chunk"),
        ("first frame, ms", f"{got.first_frame_ms:8.1f}"),
        ("fps", f"{got.fps:8.1f} ({got.fps_model:.1f} without the autoencoder)"),
        ("memory, GB", f"{memory['total'] / 1e9:8.1f} (weights "
         f"{(memory['transformer'] + memory['autoencoder']) / 1e9:.1f}, cache "
         f"{(memory['cache'] + memory['cache_rotated']) / 1e9:.1f}; without the text encoder)"
         f"{note}"),
    ]  # fmt: skip
    print(table(rows))


def _show_paper(check: dict) -> None:
    fitted, assumed = check["fitted"], check["assumed"]
    print("\nCheck against EgoEdit's Table 2 (one H100, 512x384, bf16, no overlap)")
    print(f"  {'':22}{'paper':>9}{'2x2 patch':>11}{'4x4 patch':>11}")
    both = check["predicted"]
    for key, value in check["paper"].items():
        two, four = both["patch_2x2"][key], both["patch_4x4"][key]
        print(f"  {key:22}{value:9.1f}{two:11.1f}{four:11.1f}")
    print(
        f"  Fitted: convolutions reach {fitted['conv']:.2f} of peak, from {fitted['to']}.\n"
        f"  Assumed: {assumed['matmul']:.2f} for products, {assumed['attention']:.2f} for "
        f"attention, {assumed['streaming']:.2f} of the memory rate, "
        f"{assumed['launch_us']:.0f} us a kernel; the\n"
        "  transformer's elementwise work compiled to a third. All else is predicted."
    )
    two, four = check["implied"]["patch_2x2"], check["implied"]["patch_4x4"]
    print(
        f"  The paper's 75.7 ms would be {two['implied_flops_per_s'] / 1e12:.0f} TFLOP/s with the "
        f"{two['tokens_per_latent']} tokens a latent of a 2x2 patch, and the GPU's\n  peak is "
        f"{two['peak_bf16'] / 1e12:.0f} in bf16 and {two['peak_fp8'] / 1e12:.0f} in fp8; with "
        f"{four['tokens_per_latent']} tokens (4x4) it would be "
        f"{four['implied_flops_per_s'] / 1e12:.0f}. So Table 2 was not\n  measured with 10.7B "
        "dense parameters on that many tokens on one such GPU; how, is not published.\n"
        "  --patch 4 plans for fewer tokens."
    )


def _show_beating(rows: list[dict], gpu: str, config) -> None:
    print(f"\nWhat would beat 38.1 fps and 855 ms on one {gpu} (* does), {config.size[0]}x"
          f"{config.size[1]}, patch {config.transformer.patch[1]}")  # fmt: skip
    print("  fps: without overlap to full overlap (an upper bound); first frame in ms")
    print(f"  {'autoencoder':12}{'chunk':>6}{'NFE':>5}{'fps bf16':>18}{'fps fp8':>18}"
          f"{'first bf16':>12}{'first fp8':>11}")  # fmt: skip
    found = {tuple(r[k] for k in ("autoencoder", "chunk_latents", "nfe", "precision", "overlap")): r
             for r in rows}  # fmt: skip
    for key in dict.fromkeys(k[:3] for k in found):
        line = f"  {key[0]:12}{key[1]:6}{key[2]:5}"
        for precision in ("bf16", "fp8"):
            low, high = (found[(*key, precision, o)] for o in ("none", "full"))
            span = f"{low['fps']:.1f}{'*' if low['beats_fps'] else ''} to {high['fps']:.1f}"
            line += f"{span + ('*' if high['beats_fps'] else ''):>18}"
        for precision, width in (("bf16", 12), ("fp8", 11)):
            row = found[(*key, precision, "none")]
            line += f"{row['first_frame_ms']:.0f}{'*' if row['beats_first_frame'] else ' '}".rjust(
                width
            )
        print(line)
    print("  fp8 is a prediction only: this package has no 8-bit path. NFE 2 needs weights for it.")


def _show_cpu(check: dict) -> None:
    rates = {k: v / 1e9 for k, v in check["rates"].items()}
    print(
        f"\nCheck on one core of this CPU ({check['dtype']}, CPU time; measured rates: "
        f"products {rates['matmul_flops']:.0f}, convolutions {rates['conv_flops']:.0f}, attention "
        f"{rates['attention_flops']:.0f} GFLOP/s, memory {rates['bytes']:.1f} GB/s)"
    )
    if check["load"] > 1:
        print(f"  The machine was busy (load {check['load']:.1f}); a quiet one is measured better.")
    for name, model in check["models"].items():
        size = "x".join(str(side) for side in model["size"])
        print(f"  {name} {size}, {model['nfe']} NFE: ms of a chunk, predicted / measured")
        cells = [
            f"{key.removesuffix('_ms')} {model['predicted'][key]:.1f} / {value:.1f}"
            for key, value in model["measured"].items()
        ]
        print("    " + ", ".join(cells))
