# SPDX-License-Identifier: Apache-2.0
"""Recorded steps: the same run as launched ones, and none that does something else.

CUDA's recorder needs a GPU; here a function that does the pass again stands in for it. What is
tested is all the rest: what is copied, where gradients lie, what is compared.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from egoedit_ros.errors import UserError
from egoedit_ros.train.captured import Captured
from egoedit_ros.train.loop import Trainer, TrainSettings


class Draw:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def tensors(self):
        return [self.x, self.y]


class Line:
    """Two kinds of steps, of 4 and of 6 numbers."""

    def __init__(self, net):
        self.net, self.passes = net, 0

    def __call__(self, rng, noise):
        return self.learn(*self.draw(rng, noise))

    def draw(self, rng, noise):
        count = int(rng.choice([4, 6]))
        x = torch.randn(count, 3, generator=noise)
        return count, Draw(x, x.sum(1, keepdim=True))

    def learn(self, kind, drawn):
        self.passes += 1
        assert len(drawn.x) == kind
        error = (self.net(drawn.x) - drawn.y).square().mean()
        return error, {"twice": 2 * error.detach()}


class Replayed(Captured):
    """wrong: a recording whose gradients are not the step's."""

    def __init__(self, step, net, wrong=False):
        self.wrong = wrong
        super().__init__(step, net, torch.device("cpu"))

    def _prepare(self, device):
        pass

    def _record(self, one_pass):
        loss, report = one_pass()  # these are the recording's own, as a graph's are

        def replay():
            new, figures = one_pass()
            loss.copy_(new)
            report["twice"].copy_(figures["twice"])
            if self.wrong:
                self.parameters[0].grad.mul_(-1)
            return loss, report

        return replay


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def _trained(folder, wrap, late=False):
    net = _net()
    given = {"steps": 12, "lr": 0.01, "warmup": 1, "log_every": 1, "seed": 5}
    settings = TrainSettings(folder, "line", **given)
    net[0].requires_grad_(not late)
    step = wrap(Line(net), net)
    net[0].requires_grad_(True)  # after the step was made, as LoRA's weights come
    Trainer(net, settings, step).run()
    return load_file(folder / "line.safetensors"), (folder / "line.log.jsonl").read_text()


def _without_time(log):
    return [line.split('"loss"')[1] for line in log.splitlines()]


def test_a_run_of_recorded_steps_is_the_run_of_launched_ones(tmp_path):
    launched, log = _trained(tmp_path / "launched", lambda step, net: step)
    recorded, other = _trained(tmp_path / "recorded", Replayed)
    for name, weight in launched.items():
        torch.testing.assert_close(recorded[name], weight, rtol=0, atol=0)
    assert _without_time(log) == _without_time(other)
    assert '"twice"' in log


def test_what_learns_may_be_settled_after_the_step_was_made(tmp_path):
    launched, _ = _trained(tmp_path / "launched", lambda step, net: step, late=True)
    recorded, _ = _trained(tmp_path / "recorded", Replayed, late=True)
    for name, weight in launched.items():
        torch.testing.assert_close(recorded[name], weight, rtol=0, atol=0)


def test_a_recording_that_does_something_else_is_not_used(tmp_path, capsys):
    launched, _ = _trained(tmp_path / "launched", lambda step, net: step)
    recorded, _ = _trained(tmp_path / "wrong", lambda step, net: Replayed(step, net, wrong=True))
    for name, weight in launched.items():
        torch.testing.assert_close(recorded[name], weight, rtol=0, atol=0)
    assert capsys.readouterr().err.count("captured: a replay's loss") == 2  # one for each kind


def test_gradients_stay_where_they_are(tmp_path):
    net = _net()
    step = Replayed(Line(net), net)
    streams = lambda: (np.random.default_rng(1), torch.Generator().manual_seed(1))  # noqa: E731
    step(*streams())
    places = [p.grad.data_ptr() for p in net.parameters()]
    first = torch.cat([p.grad.flatten() for p in net.parameters()])
    step(*streams())
    assert [p.grad.data_ptr() for p in net.parameters()] == places
    assert torch.equal(torch.cat([p.grad.flatten() for p in net.parameters()]), first)


def test_without_a_gpu_it_says_so():
    net = _net()
    with pytest.raises(UserError, match="without a GPU"):
        Captured(Line(net), net, torch.device("cpu"))
