# SPDX-License-Identifier: Apache-2.0
"""The check on this machine's CPU runs and has both sides (not that they agree: it may be busy)."""

import dataclasses

import torch

from egoedit_ros.model.config import EditorConfig, TransformerConfig
from egoedit_ros.runtime import plan_measure
from egoedit_ros.runtime.roofline import Device

TINY = EditorConfig(
    name="tiny",
    size=(64, 48),
    transformer=TransformerConfig(layers=1, heads=1, head_dim=32, ffn_dim=32),
)


def test_predicted_beside_measured(monkeypatch):
    cpu = Device("cpu", 1e10, 1e10, 1e9, 0.0)
    monkeypatch.setattr(plan_measure, "this_cpu", lambda dtype: cpu)
    monkeypatch.setattr(plan_measure, "get_config", lambda name: TINY)
    monkeypatch.setattr(plan_measure, "SMALL_WAN", dataclasses.replace(TINY, name="other"))
    before = torch.get_num_threads()
    check = plan_measure.cpu_check()
    assert torch.get_num_threads() == before
    assert set(check["models"]) == {"tiny", "other"}
    for model in check["models"].values():
        assert set(model["predicted"]) == set(model["measured"])
        assert all(v > 0 for side in ("predicted", "measured") for v in model[side].values())
