# SPDX-License-Identifier: Apache-2.0
"""Folders that several processes write: whole after a stop at any point, and gone on with.

Here one process is the first of two that do the same; test_parallel.py has two.
"""

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from egoedit_ros.train import states
from egoedit_ros.train.loop import Critic, Trainer, TrainSettings
from egoedit_ros.train.parallel import Group

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(autouse=True)
def twins(monkeypatch):
    """The other process is always here, and has the same."""
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "all_reduce", lambda numbers: numbers.mul_(2))
    monkeypatch.setattr(Group, "shard", lambda group, net: net)


def _save(folder, step):
    states.save_shards(folder, {"a": torch.full((2,), float(step))}, {"step": str(step)}, 0)


def _step(folder):
    tensors = {"a": torch.zeros(2)}
    states.load_shards(folder, tensors)
    step = int(states.read_shards_meta(folder)["step"])
    assert torch.equal(tensors["a"], torch.full((2,), float(step)))
    return step


def _stopped_save(monkeypatch, folder, renames):
    """A save of step 2 that is killed after so many of its two renames."""
    done, replace = [], Path.replace

    def rename(path, to):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(to)
        return replace(path, to)

    def remove(path, **how):
        if len(done) == 2:
            raise KeyboardInterrupt
        original(path, **how)

    original = shutil.rmtree
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", rename)
        patched.setattr(shutil, "rmtree", remove)
        _save(folder, 2)


@pytest.mark.parametrize(("renames", "step"), [(0, 1), (1, 2), (2, 2)])
def test_a_stop_while_a_folder_is_put_in_place_is_mended(tmp_path, monkeypatch, renames, step):
    folder = tmp_path / "toy.state"
    _save(folder, 1)
    _stopped_save(monkeypatch, folder, renames)
    states.finish_renaming_shards(folder)
    assert _step(folder) == step
    _save(folder, 3)  # whatever was left is not in the way
    assert _step(folder) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["toy.state"]


def test_the_folder_before_comes_back_where_the_new_one_is_not_whole(tmp_path, monkeypatch):
    folder = tmp_path / "toy.state"
    _save(folder, 1)
    _stopped_save(monkeypatch, folder, 1)
    (new,) = (path for path in tmp_path.iterdir() if states.read_shards_meta(path)["step"] == "2")
    (new / states.META).write_text('{"step"')
    states.finish_renaming_shards(folder)
    assert _step(folder) == 1


def test_a_cut_short_checkpoint_is_not_in_a_folders_way(tmp_path):
    (tmp_path / "toy.part").write_bytes(b"of toy.safetensors")
    _save(tmp_path / "toy.state", 1)
    assert _step(tmp_path / "toy.state") == 1


def test_only_the_first_process_keeps_whole_weights():
    gathered = []

    class Spread:
        def full_tensor(self):
            gathered.append(self)
            return torch.ones(2)

    tensors = {"a": Spread(), "b": Spread()}
    assert states.whole_on_first(tensors, 1) == {} and len(gathered) == 2
    assert states.whole_on_first(tensors, 0).keys() == {"a", "b"} and len(gathered) == 4


def _pair(folder, steps):
    """A model that follows its critic at each third step."""
    torch.manual_seed(0)
    model, critic = nn.Linear(1, 1), nn.Linear(1, 1)
    one = torch.ones(1, 1)

    def lead(rng, noise):
        return (model(one) - critic(one).detach()).square().sum(), {}

    def follow(rng, noise):
        return (critic(one) - 3 + 0.1 * rng.standard_normal()).square().sum(), {}

    settings = TrainSettings(
        folder, "pair", "toy", steps=steps, lr=0.1, warmup=1, schedule="constant", save_every=2
    )
    learns = Critic(critic, follow, 3, 0.2)
    return Trainer(model, settings, lead, critic=learns, group=Group(0, 2))


@pytest.mark.parametrize("step", [2, 4], ids=["before the model's first step", "after it"])
def test_a_stopped_distillation_goes_on_exactly(tmp_path, step):
    whole = load_file(_pair(tmp_path / "whole", 9).run())
    _pair(tmp_path / "part", step).run()
    resumed = _pair(tmp_path / "part", 9)
    assert resumed.done == step
    made = load_file(resumed.run())
    assert all(torch.equal(whole[name], made[name]) for name in whole)


def test_a_run_that_was_killed_between_the_renames_goes_on(tmp_path, monkeypatch):
    trainer = _pair(tmp_path, 4)
    trainer.run()
    _stopped_save(monkeypatch, trainer.state, 1)
    assert not trainer.state.exists()
    shutil.rmtree(next(p for p in tmp_path.iterdir() if p.suffix == ".new"))
    assert _pair(tmp_path, 9).done == 4
