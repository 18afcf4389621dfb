# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from egoedit_ros.errors import UserError
from egoedit_ros.train.loop import Trainer, TrainSettings


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x):
        return self.blocks[1](torch.tanh(self.blocks[0](x)))


def _trainer(folder, steps, **more):
    torch.manual_seed(0)
    model = Toy()
    settings = TrainSettings(
        folder, "toy", model="toy", steps=steps, lr=1e-2, warmup=2, log_every=1, bf16=False, **more
    )

    def step(rng: np.random.Generator, noise: torch.Generator):
        x = torch.from_numpy(rng.standard_normal((16, 8))).float()
        y = x.roll(1, -1) + 0.01 * torch.randn(16, 8, generator=noise)
        loss = (model(x) - y).square().mean()
        return loss, {"error": loss.detach()}

    return Trainer(model, settings, step)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_gives_the_same_weights(tmp_path, optimizer):
    whole = _trainer(tmp_path / "whole", 30, optimizer=optimizer).run()
    part = _trainer(tmp_path / "part", 30, optimizer=optimizer, save_every=12)
    part.settings = TrainSettings(**(part.settings.__dict__ | {"save_every": 12}))
    original = part._save

    def cut():  # the process dies right after the save at step 12
        original()
        raise KeyboardInterrupt

    part._save = cut
    with pytest.raises(KeyboardInterrupt):
        part.run()
    assert part.done == 12
    resumed = _trainer(tmp_path / "part", 30, optimizer=optimizer).run()
    one, other = load_file(whole), load_file(resumed)
    assert all(torch.equal(one[k], other[k]) for k in one)
    steps = [json.loads(x)["step"] for x in (tmp_path / "part/toy.log.jsonl").open()]
    assert steps == list(range(1, 31))


def test_the_loss_falls(tmp_path):
    trainer = _trainer(tmp_path, 200)
    trainer.run()
    losses = [json.loads(x)["loss"] for x in trainer.log.open()]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:5])


def test_a_loss_that_is_no_number_stops_and_keeps_what_there_is(tmp_path):
    trainer = _trainer(tmp_path, 10)
    good = trainer._step

    def step(rng, noise):
        loss, report = good(rng, noise)
        return (loss * float("nan"), report) if trainer.done == 5 else (loss, report)

    trainer._step = step
    with pytest.raises(UserError, match="step 5"):
        trainer.run()
    assert all(torch.isfinite(v).all() for v in load_file(trainer.checkpoint).values())


def test_another_models_folder_is_refused(tmp_path):
    _trainer(tmp_path, 2).run()
    with pytest.raises(UserError, match="belongs to model toy"):
        Trainer(Toy(), TrainSettings(tmp_path, "toy", model="other"), lambda *_: None)
