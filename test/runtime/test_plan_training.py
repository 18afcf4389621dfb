# SPDX-License-Identifier: Apache-2.0
"""Counts of a training step against what can be worked out by hand."""

import dataclasses

import pytest

from egoedit_ros.cli.main import main
from egoedit_ros.errors import UserError
from egoedit_ros.model.config import get_config
from egoedit_ros.runtime.plan_training import (
    Cluster,
    Stage,
    activation_bytes,
    plan_step,
    step_work,
    streamed_forward,
    whole_forward,
)
from egoedit_ros.runtime.roofline import GPUS, MATMUL

TINY = dataclasses.replace(
    get_config("egoedit-10b"),
    size=(64, 48),
    transformer=dataclasses.replace(
        get_config("egoedit-10b").transformer, layers=3, heads=2, head_dim=24, ffn_dim=64,
        text_dim=16, text_len=8, freq_dim=16,
    ),
)  # fmt: skip


def products(work):
    return sum(op.flops * n for op, n in work.items() if op.kind == MATMUL)


def test_a_step_of_flow_is_four_forwards():
    """Forward, recomputed, and backward of twice the work."""
    work, _ = step_work(TINY, Stage("flow", 4, 10))
    assert work.flops == 4 * whole_forward(TINY, 21).flops


def test_a_stream_does_the_same_products_as_the_whole_clip():
    step, write = streamed_forward(TINY, 21)
    whole = whole_forward(TINY, 21)
    assert products(step) == pytest.approx(products(whole), rel=0.05)  # timesteps come 7 times
    assert products(write) == pytest.approx(products(whole) * 6 / 7, rel=0.05)


def test_a_distilling_step_by_hand():
    """Critic: 2.5 passes to make a clip, 4 to learn; generator, each 5th: 1.5 + 4 + 3 scores."""
    work, _ = step_work(TINY, Stage("dmd", 4, 10, critic_steps=5))
    whole = whole_forward(TINY, 21).flops
    assert work.flops == pytest.approx((2.5 + 4 + (1.5 + 4 + 3) / 5) * whole)


def test_what_a_block_keeps_grows_with_the_tokens_only():
    inside, entry = activation_bytes(TINY, 21)
    assert entry == 2 * 21 * 12 * 48
    double, _ = activation_bytes(TINY, 42)
    assert double == pytest.approx(2 * inside, rel=0.05)
    # At least the block's input and its MLP's inner activations, in two bytes each.
    assert inside > entry + 2 * 21 * 12 * 64


def test_more_gpus_hold_less_and_take_less_time():
    stage = Stage("self_forcing", 64, 100, critic_steps=10, streamed=True)
    many, few = (plan_step(TINY, stage, GPUS["h100"], Cluster(n)) for n in (64, 16))
    assert (many.clips, few.clips) == (1, 4)
    assert many.total_bytes < few.total_bytes and many.compute_s < few.compute_s
    assert few.compute_s == pytest.approx(4 * many.compute_s)
    assert many.days == pytest.approx(many.seconds * 100 / 86400)


def test_a_batch_that_does_not_fit_the_gpus_is_told():
    with pytest.raises(UserError, match="batch of 64 .* cannot be shared by 48 GPUs"):
        plan_step(TINY, Stage("dmd", 64, 1), GPUS["h100"], Cluster(48))


@pytest.mark.slow
def test_the_command(capsys, tmp_path):
    import json

    path = tmp_path / "plan.json"
    assert main(["plan", "--training", "--gpus", "48", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "flow" in shown and "cannot be shared by 48 GPUs" in shown
    rows = json.loads(path.read_text())["training"]["stages"]
    assert rows[0]["clips"] == 2 and rows[0]["total_bytes"] < 80e9
    assert "problem" in rows[1]
