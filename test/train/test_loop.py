# SPDX-License-Identifier: Apache-2.0
import json
import os
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from train_support import TINY

from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill
from egoedit_ros.model.transformer import Transformer, causal_attend, token_grid
from egoedit_ros.train import states
from egoedit_ros.train.loop import Critic, Trainer, TrainSettings


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
        seen["x"] = x
        return loss, {"error": loss.detach()}

    seen = {}
    return Trainer(model, settings, step, batch=lambda: seen)


def _same(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) for k in one)


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
    (bad,) = tmp_path.glob("toy.bad_step000005.*.safetensors")
    assert load_file(bad)["x"].shape == (16, 8)


def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path):
    trainer = _trainer(tmp_path, 10)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    good = trainer._step

    def step(rng, noise):
        loss, report = good(rng, noise)
        return loss + torch.sqrt(trainer.model.blocks[0].weight.sum() * 0), report

    trainer._step = step
    with pytest.raises(UserError, match="gradient's norm is"):
        trainer.run()
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


def test_another_models_folder_is_refused(tmp_path):
    _trainer(tmp_path, 2).run()
    with pytest.raises(UserError, match="belongs to model toy"):
        Trainer(Toy(), TrainSettings(tmp_path, "toy", model="other"), lambda *_: None)


def test_a_run_goes_on_longer_but_not_otherwise(tmp_path):
    _trainer(tmp_path, 5).run()
    assert _trainer(tmp_path, 8).done == 5
    with pytest.raises(UserError, match=r"clip was 1.0, is 2.0; ema was 0.998, is 0.9"):
        _trainer(tmp_path, 8, clip=2.0, ema=0.9)
    assert states.differences('{"data": {"crop": 8, "old": 1}}', {"data": {"crop": 0}}) == [
        "data.crop was 8, is 0"
    ]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    whole = _trainer(tmp_path / "whole", 20, save_every=5).run()
    trainer = _trainer(tmp_path / "part", 20, save_every=5)
    save, limits = trainer._save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full():
        if trainer.done == 10:  # fits the averaged weights, but not the larger state
            size = trainer.checkpoint.stat().st_size + 512
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        save()

    trainer._save = full
    try:
        with pytest.raises(UserError, match="cannot write .* free space and run the same command"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "part").glob("*.part"))
    assert states.read_meta(trainer.checkpoint)["step"] == "5"
    resumed = _trainer(tmp_path / "part", 20, save_every=5)
    assert resumed.done == 5
    assert _same(whole, resumed.run())


def test_a_stop_between_the_two_renames_is_mended(tmp_path):
    constant = {"schedule": "constant"}
    whole = _trainer(tmp_path / "whole", 12, **constant).run()
    trainer = _trainer(tmp_path / "part", 6, **constant)
    trainer.run()
    old = trainer.state.read_bytes()
    longer = _trainer(tmp_path / "part", 9, **constant)
    longer.run()
    longer.state.replace(longer.state.with_suffix(".part"))  # the checkpoint is of step 9
    longer.state.write_bytes(old)
    resumed = _trainer(tmp_path / "part", 12, **constant)
    assert resumed.done == 9 and not resumed.state.with_suffix(".part").exists()
    assert _same(whole, resumed.run())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_end_of_its_step(tmp_path, number):
    whole = _trainer(tmp_path / "whole", 12).run()
    trainer = _trainer(tmp_path / "part", 12)
    good = trainer._step

    def step(rng, noise):
        if trainer.done == 6:
            os.kill(os.getpid(), number)
        return good(rng, noise)

    trainer._step = step
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(number) is before
    resumed = _trainer(tmp_path / "part", 12)
    assert resumed.done == 7
    assert _same(whole, resumed.run())


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_what_breaks_in_a_step_leaves_what_was_learnt(tmp_path, kind):
    trainer = _trainer(tmp_path, 12)
    good = trainer._step

    def step(rng, noise):
        if trainer.done == 4:
            raise kind("a worker died")
        return good(rng, noise)

    trainer._step = step
    with pytest.raises(kind, match="a worker died"):
        trainer.run()
    assert _trainer(tmp_path, 12).done == 4


def test_what_breaks_in_a_sample_leaves_what_was_learnt(tmp_path):
    trainer = _trainer(tmp_path, 12, sample_every=3)

    def sample(net, step):
        raise RuntimeError("no memory")

    trainer._sampler = sample
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.run()
    assert _trainer(tmp_path, 12).done == 3


def test_counts_of_steps_come_back_to_the_host(tmp_path):
    trainer = _trainer(tmp_path, 2)
    trainer.run()
    (part,) = trainer.parts
    on_device = SimpleNamespace(cpu=lambda: torch.tensor(2.0))
    part.load({k: on_device if k.endswith(".step") else v for k, v in part.state().items()})
    slots = part.optimizers[0].state_dict()["state"].values()
    assert slots and all(torch.equal(slot["step"], torch.tensor(2.0)) for slot in slots)


def test_whoever_watches_is_told_and_may_stop_it(tmp_path):
    class Eye:
        def __init__(self):
            self.seen = []

        def report(self, progress):
            self.seen.append(progress)

        def stopped(self):
            return len(self.seen) > 4

    eye = Eye()
    trainer = _trainer(tmp_path, 100, watch=eye)
    trainer.run()
    assert trainer.done < 6
    states_seen = [p.state for p in eye.seen]
    assert states_seen[0] == "running" and states_seen[-2:] == ["saving", "done"]
    last = eye.seen[-1]
    assert last.checkpoint == str(trainer.checkpoint) and last.total_steps == 100
    assert last.eta_s > 0 and last.steps_per_second > 0


def test_curves_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _trainer(tmp_path, 4, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tb" / "toy"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert "error" in events.Tags()["scalars"]


def test_samples_at_intervals(tmp_path):
    trainer = _trainer(tmp_path, 6, sample_every=3)
    trainer._sampler = lambda net, step: {"gain": float(step)}
    trainer.run()
    rows = [json.loads(x) for x in trainer.samples.open()]
    assert rows == [{"step": 3, "sample_gain": 3.0}, {"step": 6, "sample_gain": 6.0}]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; use one of: adamw, muon"),
        ({"schedule": "flat"}, "schedule is 'flat'"),
        ({"save_every": 0}, "save_every is 0; it must be a whole number from 1 up"),
        ({"lora": -1}, "lora is -1"),
        ({"critic_lr": "4e-7"}, "critic_lr is '4e-7'; it must be a number"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, more, says):
    with pytest.raises(UserError, match=says):
        _trainer(tmp_path, 2, **more)


# --- a critic beside the model -----------------------------------------------------------


def _pair(folder, steps, **more):
    """A model that goes where its critic is, and a critic that goes to 3."""
    torch.manual_seed(0)
    model, critic = nn.Linear(1, 1), nn.Linear(1, 1)
    turns = []

    def lead(rng, noise):
        turns.append("model")
        return (model(torch.ones(1, 1)) - critic(torch.ones(1, 1)).detach()).square().sum(), {}

    def follow(rng, noise):
        turns.append("critic")
        return (critic(torch.ones(1, 1)) - 3 + 0.1 * rng.standard_normal()).square().sum(), {}

    settings = TrainSettings(
        folder, "pair", model="toy", steps=steps, lr=0.1, warmup=1, log_every=1, **more
    )
    trainer = Trainer(model, settings, lead, critic=Critic(critic, follow, 3, 0.2))
    return trainer, turns


def test_a_critic_learns_at_every_step_and_the_model_at_each_third(tmp_path):
    trainer, turns = _pair(tmp_path, 6)
    trainer.run()
    assert turns == [*["critic"] * 3, "model", *["critic"] * 3, "model"]
    rows = [json.loads(x) for x in trainer.log.open()]
    assert ["loss" in r for r in rows] == [False, False, True] * 2
    assert all(r["critic_lr"] == pytest.approx(2 * r["lr"]) for r in rows if "lr" in r)


def test_a_run_with_a_critic_resumes_exactly(tmp_path):
    whole, _ = _pair(tmp_path / "whole", 20)
    path = whole.run()
    first, _ = _pair(tmp_path / "part", 20, save_every=7)
    save = first._save

    def cut():
        save()
        raise KeyboardInterrupt

    first._save = cut
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second, _ = _pair(tmp_path / "part", 20, save_every=7)
    assert second.done == 7
    assert _same(path, second.run())
    assert _same(whole.state, second.state)


@pytest.mark.parametrize("how", ["raises", "is no number"])
def test_what_breaks_after_the_critics_step_is_not_saved(tmp_path, how):
    """Or the critic would take that step once more."""
    path = _pair(tmp_path / "whole", 20)[0].run()
    trainer, _ = _pair(tmp_path / "part", 20, save_every=7)
    good = trainer._step

    def step(rng, noise):
        loss, report = good(rng, noise)
        if trainer.done < 8:
            return loss, report
        if how == "raises":
            raise RuntimeError("a worker died")
        return loss * float("nan"), report

    trainer._step = step
    with pytest.raises((RuntimeError, UserError), match="a worker died|good weights are in"):
        trainer.run()
    resumed, _ = _pair(tmp_path / "part", 20, save_every=7)
    assert resumed.done == 7
    assert _same(path, resumed.run())


def test_no_number_before_anything_was_saved_says_so(tmp_path):
    trainer, _ = _pair(tmp_path, 20)
    good = trainer._step
    trainer._step = lambda *streams: (good(*streams)[0] * float("nan"), {})
    with pytest.raises(UserError, match="at step 2; no weights were saved before; lower lr and b"):
        trainer.run()
    assert not trainer.checkpoint.exists() and not trainer.state.exists()


# --- what is done to a transformer ---------------------------------------------------------


def _transformer_run(folder, steps, **more):
    torch.manual_seed(0)
    net = Transformer(TINY.transformer)
    settings = TrainSettings(folder, "net", "tiny", steps=steps, lr=1e-2, warmup=1, **more)
    y, x = token_grid(3, 4, "cpu")
    attend = causal_attend(*net.rope.angles(torch.arange(2), y, x), 2, chunk=1)

    def step(rng, noise):
        latents = torch.randn(1, 2, 4, 6, 8, generator=noise)
        text = net.text(torch.randn(1, 4, 384, generator=noise))
        modulation = net.modulation(torch.full((1, 2), 300.0))
        made = net(net.embed(latents), modulation, text, attend, (3, 4))[:, :, :4]
        return (made - latents).square().mean(), {}

    return Trainer(net, settings, step)


def test_recomputing_changes_no_weight_and_no_name(tmp_path):
    one = _transformer_run(tmp_path / "a", 3).run()
    other = _transformer_run(tmp_path / "b", 3, recompute=True).run()
    assert _same(one, other)


def test_lora_trains_additions_and_leaves_a_plain_checkpoint(tmp_path):
    start = _transformer_run(tmp_path / "x", 1).model
    before = {k: v.clone() for k, v in start.state_dict().items()}
    trainer = _transformer_run(tmp_path / "a", 6, lora=4)
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in n for n in trained)
    path = trainer.run()
    fill(Transformer(TINY.transformer), load_file(path), path)
    after = load_file(path)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert "blocks.0.attn1.to_q.weight" in changed and "blocks.1.ffn.net.2.weight" in changed
    assert all(k.startswith("blocks.") and k.endswith(".weight") for k in changed)

    part = _transformer_run(tmp_path / "b", 6, lora=4, save_every=3)
    save = part._save

    def cut():
        save()
        raise KeyboardInterrupt

    part._save = cut
    with pytest.raises(KeyboardInterrupt):
        part.run()
    resumed = _transformer_run(tmp_path / "b", 6, lora=4, save_every=3)
    assert resumed.done == 3
    assert _same(path, resumed.run())
