# SPDX-License-Identifier: Apache-2.0
"""The plan counts right, and says of the paper's figures what can be said."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from egoedit_ros.errors import UserError
from egoedit_ros.model.cache import KeyValueCache
from egoedit_ros.model.config import AutoencoderConfig, EditorConfig, TransformerConfig
from egoedit_ros.model.taehv import TinyAutoencoder
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.runtime import plan
from egoedit_ros.runtime.roofline import ATTENTION, CONV, MATMUL, OTHER, Device, Work, count
from egoedit_ros.runtime.roofline import Operation as Op

SMALL = EditorConfig(
    name="small",
    size=(64, 32),
    chunk_latents=2,
    window_chunks=2,
    nfe=3,
    transformer=TransformerConfig(
        layers=5, heads=2, head_dim=24, ffn_dim=64, in_channels=8, out_channels=4, text_dim=16,
        text_len=6, freq_dim=32, anchored=False,
    ),
    autoencoder=AutoencoderConfig(kind="taehv", latent_channels=4),
)  # fmt: skip
GRID = (2, 4)
TEST_GPU = Device("test", 1e12, 2e12, 1e11, 1e9)


@pytest.mark.parametrize("past", [0, 2])
def test_flops_are_torchs_own_count(past):
    config = SMALL.transformer
    got = plan.forward_work(config, GRID, 2, 2, past)[1]
    net = Transformer(config)
    cache = KeyValueCache(net, GRID, 2, 2)
    cache._order = list(range(past))
    latents = torch.randn(1, 2, 4, 4, 8)
    context, zero = net.text(torch.randn(1, 6, 16)), net.modulation(torch.zeros(1, 1))
    # The counter does not know the CPU's fused attention.
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
        net(net.embed(latents), zero, context, cache.attend(store=False), GRID)
    assert got.flops == counter.get_total_flops()


def test_work_of_the_autoencoder_is_torchs_own_count():
    (encode, decode), _ = plan.autoencoder_work(SMALL.autoencoder, SMALL.size, (5, 8))
    stream = TinyAutoencoder(4).open_stream()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        coded = stream.encode(torch.rand(5, 3, 32, 64), True)
        encoded = counter.get_total_flops()
        stream.decode(coded.latents, coded)
    assert encode.flops == encoded and decode.flops == counter.get_total_flops() - encoded


def test_kinds_and_bytes():
    a = torch.empty(3, 4, device="meta")
    work = count(lambda: (a @ a.T).relu())
    assert work == {Op(MATMUL, 2 * 9 * 4, 4 * (12 + 12 + 9)): 1, Op(OTHER, 0, 4 * 18): 1}
    q = torch.empty(1, 2, 3, 8, device="meta")
    work = count(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert work == {Op(ATTENTION, 4 * 2 * 3 * 3 * 8, 4 * 4 * 48): 1}


def test_time_is_the_longest_of_compute_memory_and_launch():
    gpu = Device("g", 1e12, 2e12, 1e9, 1e9, matmul=0.5, streaming=1.0, launch_s=1e-6)
    assert gpu.seconds(Work({Op(MATMUL, 10**12, 8): 1})) == pytest.approx(2.0)
    assert gpu.seconds(Work({Op(MATMUL, 10**12, 8): 1}), fp8=True) == pytest.approx(1.0)
    assert gpu.seconds(Work({Op(OTHER, 0, 10**9): 2})) == pytest.approx(2.0)
    assert gpu.seconds(Work({Op(OTHER, 0, 10**9): 2}), fused=0.5) == pytest.approx(1.0)
    assert gpu.seconds(Work({Op(OTHER, 0, 1): 5})) == pytest.approx(5e-6)
    fitted = gpu.fitted(CONV, Work({Op(CONV, 10**12, 8): 1}), 4.0)
    assert fitted.conv == pytest.approx(0.25, rel=1e-3)


def test_what_costs_more_takes_longer():
    base = plan.predict(SMALL, TEST_GPU)
    more = plan.predict(dataclasses.replace(SMALL, nfe=6), TEST_GPU)
    assert more.first["denoise_ms"] == pytest.approx(2 * base.first["denoise_ms"], rel=0.05)
    assert more.fps < base.fps and more.first_frame_ms > base.first_frame_ms
    full = plan.predict(SMALL, TEST_GPU, overlap="full")
    assert full.fps > base.fps and full.first_frame_ms == base.first_frame_ms
    assert plan.predict(SMALL, TEST_GPU, "fp8").fps >= base.fps
    assert base.first["recording_ms"] == pytest.approx(1e3 * 5 / 16)


def test_memory_counts_weights_and_cache():
    got = plan.memory_bytes(SMALL, "bf16")
    net = Transformer(SMALL.transformer)
    assert got["transformer"] == 2 * sum(p.numel() for p in net.parameters())
    cache = KeyValueCache(net.to(torch.bfloat16), GRID, 2, 2)
    assert got["cache"] + got["cache_rotated"] == cache.memory_bytes()
    assert plan.memory_bytes(SMALL, "fp8")["transformer"] == got["transformer"] / 2


def test_a_size_that_does_not_fit():
    with pytest.raises(UserError, match="multiples of 16"):
        plan.predict(dataclasses.replace(SMALL, size=(60, 32)), TEST_GPU)


def test_the_paper():
    check = plan.paper_check()
    paper, two, four = check["paper"], *check["predicted"].values()
    assert two["recording_ms"] == pytest.approx(paper["recording_ms"], rel=0.01)
    # Only 81 frames at once were fitted; these are other figures.
    assert two["autoencoder_ms"] == pytest.approx(paper["autoencoder_ms"], rel=0.25)
    assert two["autoencoder_steady_ms"] == pytest.approx(paper["autoencoder_steady_ms"], rel=0.05)
    # As derived, the model's time lies beyond the peak of the GPU; with 4x4 patches it does not.
    implied = check["implied"]
    assert implied["patch_2x2"]["implied_flops_per_s"] > implied["patch_2x2"]["peak_fp8"]
    assert implied["patch_4x4"]["implied_flops_per_s"] < 0.7 * implied["patch_4x4"]["peak_bf16"]
    assert four["first_frame_ms"] == pytest.approx(paper["first_frame_ms"], rel=0.1)
    assert four["fps"] == pytest.approx(paper["fps"], rel=0.2)
