# SPDX-License-Identifier: Apache-2.0
"""``egoedit export``: a model as ONNX files, checked against torch, and as TensorRT engines."""

from __future__ import annotations

import argparse
from pathlib import Path

from egoedit_ros.cli.common import model_size, positive_whole, table

PRECISIONS = ("bf16", "fp16", "fp32")


def add_parser(subparsers) -> None:
    """Register ``export``."""
    parser = subparsers.add_parser(
        "export",
        help="write ONNX files and TensorRT engines",
        description="Write encoder, denoise step and decoder of a model as ONNX files of one size, "
        "each checked against torch, with a manifest that names inputs and outputs. The folder "
        "appears when all of it is there.",
    )
    parser.add_argument("--model", default="edge", metavar="edge|NAME|PATH", help="default: edge")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    parser.add_argument("--size", metavar="WxH", help="default: the model's own")
    parser.add_argument(
        "--chunk-latents", type=positive_whole, metavar="N", help="default: the model's own"
    )
    parser.add_argument(
        "--tensorrt", action="store_true", help="also build engines for the GPU of this machine"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bf16", help="of the engines; default: bf16"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that exists")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the manifest there too")


def run(args: argparse.Namespace) -> int:
    """Export. Raises UserError before anything is loaded where that can be told."""
    from egoedit_ros.runtime.onnx_export import MANIFEST
    from egoedit_ros.runtime.whole import check_folder, write_whole

    size = model_size(args.size)
    check_folder(args.output, args.overwrite, MANIFEST)
    if args.tensorrt:
        from egoedit_ros.runtime.tensorrt_backend import tensorrt

        tensorrt()
    import torch

    from egoedit_ros.runtime.onnx_export import TOLERANCE, export
    from egoedit_ros.stream.edit_session import load_model

    model = load_model(args.model, "cpu", torch.float32)

    def make(part: Path) -> dict:
        manifest = export(model, part, size, args.chunk_latents, args.model)
        if args.tensorrt:
            from egoedit_ros.runtime.tensorrt_backend import get_engine

            for piece in manifest["files"]:
                get_engine(part, piece, manifest, args.precision)
        return manifest

    manifest = write_whole(args.output, make, args.overwrite)
    if args.json:
        from egoedit_ros.bench.report import write_json

        write_json(manifest, args.json)
    rows = []
    for piece, file in manifest["files"].items():
        megabytes = (args.output / file).stat().st_size / 2**20
        difference = manifest["max_difference_to_torch"][piece]
        rows.append((file, f"{megabytes:6.1f} MiB, differs from torch by {difference:.1g} at most"))
    print(table(rows))
    print(f"{args.output}: all within {TOLERANCE:g} of torch (float32, ONNX Runtime on the CPU)")
    return 0
