# SPDX-License-Identifier: Apache-2.0
"""``egoedit plan --training``: memory and time of a training step on many GPUs."""

from __future__ import annotations

import dataclasses


def show_training(config, device, gpus: int) -> dict:
    """Print the paper's stages on ``gpus`` of ``device``; the same as values for JSON."""
    from egoedit_ros.errors import UserError
    from egoedit_ros.runtime.plan_training import PAPER_STAGES, Cluster, plan_step

    cluster = Cluster(gpus)
    print(
        f"Training {config.name} at {config.size[0]}x{config.size[1]}, clips of 81 frames, on "
        f"{gpus} {device.name}: weights spread over all (FSDP2), blocks recomputed, bf16"
    )
    print(f"  {'stage':14}{'batch':>6}{'a GPU':>7}{'step, s':>9}{'work':>7}{'network':>9}"
          f"{'steps':>8}{'days':>7}{'GB a GPU':>10}{'kept whole':>12}")  # fmt: skip
    rows = []
    for stage in PAPER_STAGES:
        try:
            got = plan_step(config, stage, device, cluster)
        except UserError as error:
            print(f"  {stage.name:14}{stage.batch:6}  {error}")
            rows.append({"stage": stage.name, "problem": str(error)})
            continue
        note = "" if got.total_bytes <= device.memory else " (more than the GPU has)"
        print(
            f"  {stage.name:14}{stage.batch:6}{got.clips:7}{got.seconds:9.1f}{got.compute_s:7.1f}"
            f"{got.communication_s:9.2f}{stage.steps:8}{got.days:7.1f}"
            f"{got.total_bytes / 1e9:10.1f}{got.activations_whole / 1e9:12.0f}{note}"
        )
        rows.append(dataclasses.asdict(got) | {"total_bytes": got.total_bytes})
    print("  GB a GPU, by kind:")
    for row in rows:
        if "memory" in row:
            parts = ", ".join(f"{k} {v / 1e9:.1f}" for k, v in row["memory"].items())
            print(f"    {row['stage']['name']}: {parts}")
    print(
        "  kept whole: GB of activations a GPU would hold without recomputing. A step of a "
        "distilling\n  stage is one of the critic and a part of one of the generator. Assumed: "
        f"{device.matmul:.2f} of peak for products,\n  {device.attention:.2f} for attention, "
        f"{cluster.bus / 1e9:.0f} GB/s a GPU between nodes, communication beside the work; "
        "nothing of it\n  was run on such a cluster."
    )
    return {"gpus": gpus, "bus_bytes_per_s": cluster.bus, "stages": rows}
