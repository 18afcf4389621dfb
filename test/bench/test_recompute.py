# SPDX-License-Identifier: Apache-2.0
"""The straightforward way computes what the cache does, and takes longer."""

import pytest
import torch
from runtime_support import SIZE, small_model

from egoedit_ros.bench.recompute import TOLERANCE, agreement, diffusers_transformer, measure_speedup

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_both_ways_agree(model):
    assert agreement(model, SIZE) <= TOLERANCE


def test_the_check_sees_a_past_that_is_not_the_same(model, monkeypatch):
    from egoedit_ros.model.cache import KeyValueCache

    gather = KeyValueCache._gather

    def wrong(self, layer):
        made = self._past is None
        past = gather(self, layer)
        if made and past is not None:
            for _, values in self._past:
                values.mul_(1.5)
        return past

    monkeypatch.setattr(KeyValueCache, "_gather", wrong)
    assert agreement(model, SIZE) > TOLERANCE


def test_the_speedup_is_measured_with_its_terms(model):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = measure_speedup(model, SIZE, rounds=2)
    finally:
        torch.set_num_threads(before)
    assert figures["speedup"] == pytest.approx(figures["recompute_ms"] / figures["cached_ms"])
    assert figures["speedup"] > 1
    assert figures["difference"] <= figures["tolerance"]
    assert (figures["nfe"], figures["window_chunks"], figures["chunk_latents"]) == (4, 5, 3)
    assert figures["threads"] == 1


def test_diffusers_gets_our_weights_and_dtype(model):
    theirs = diffusers_transformer(model.transformer)
    ours = model.transformer.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.state_dict().items())
