# SPDX-License-Identifier: Apache-2.0
"""Stages ``detail_samples`` and ``detail``: squares of edits, and a network that learns of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from egoedit_ros.data.sim.vocabulary import KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import EdgeAutoencoder
from egoedit_ros.model.checkpoint import read_safetensors
from egoedit_ros.model.config import AutoencoderConfig, DetailConfig, get_config
from egoedit_ros.model.detail import ALONE, DetailNet
from egoedit_ros.model.forms import Forms
from egoedit_ros.model.pose import POSE
from egoedit_ros.stream.edit_session import BUNDLED
from egoedit_ros.train.detail import (
    DetailData,
    DetailSamples,
    DetailStep,
    mirror_latents,
    train_detail,
)
from egoedit_ros.train.detail_samples import SampleScenes, make_samples
from egoedit_ros.train.loop import TrainSettings

AUTOENCODER = BUNDLED / "edge" / "autoencoder.safetensors"


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Weights of forms that nobody has learned."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("forms") / "forms.safetensors"
    net = Forms(DetailConfig(forms=8))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    assert list(make_samples(folder, SampleScenes(seeds=[[7, 2]], workers=1)))[-1] == (2, 2)
    return folder


def test_samples_are_squares_of_edits_beside_their_targets(samples):
    paths = sorted(samples.glob("*"))
    assert [p.name for p in paths] == ["7.safetensors", "8.safetensors"]
    with safe_open(paths[0], "np") as file:
        told = json.loads(file.metadata()["texts"])
        source, target, made = (file.get_tensor(k) for k in ("source", "target", "made"))
        poses = file.get_tensor("pose")
    assert {"replace", "remove", "recolour"} <= {task for task, *_ in told}
    assert all((task == "remove") == (kind == "") for task, _, kind in told)
    assert all(kind in (*KINDS, "") for *_, kind in told)
    assert poses.shape == (len(source), POSE) and np.isfinite(poses).all()
    assert source.shape == target.shape == made.shape and source.shape[1:] == (128, 128, 3)
    edited = np.abs(source.astype(int) - target).max(-1) > 12
    errors = [((x.astype(int) - target) ** 2)[edited].mean() for x in (source, made)]
    assert errors[1] < 0.5 * errors[0]  # they are edits, and beside the right targets
    mtimes = [p.stat().st_mtime_ns for p in paths]
    list(make_samples(samples, SampleScenes(seeds=[[7, 2]], workers=1)))
    assert [p.stat().st_mtime_ns for p in paths] == mtimes  # what is there is not made again


def test_a_film_of_one_picture_is_the_first_of_the_longer_one(samples, tmp_path):
    list(make_samples(tmp_path, SampleScenes(seeds=[], singles=[[7, 1]], workers=1)))
    with safe_open(tmp_path / "7.safetensors", "np") as short:
        with safe_open(samples / "7.safetensors", "np") as long:
            whole = long.get_tensor("place")
            first = whole[:, 1] < 0
            assert 0 < first.sum() < len(whole)
            for name in ("source", "target", "made", "mask"):
                assert np.array_equal(short.get_tensor(name), long.get_tensor(name)[first])
            for name in ("edited", "before"):
                frames = whole[first, 0]
                assert np.array_equal(short.get_tensor(name), long.get_tensor(name)[frames])
    assert len(DetailSamples(tmp_path).rows) == first.sum()


@pytest.mark.parametrize("seeds", [[[999_999, 2]], [], [[5, 0]], [7], "7"])
def test_seeds_that_are_for_evaluation_or_none_are_refused(tmp_path, seeds):
    with pytest.raises(UserError, match="seeds"):
        next(make_samples(tmp_path / "none", SampleScenes(seeds=seeds)))
    with pytest.raises(UserError, match="singles"):
        next(make_samples(tmp_path / "none", SampleScenes(seeds=[], singles=seeds)))


def test_a_network_learns_from_them(samples, forms, tmp_path):
    small = DetailConfig(widths=(8, 16, 16), blocks=(1, 1), forms=8)
    config = dataclasses.replace(get_config("edge"), detail=small)
    data = DetailData(samples, AUTOENCODER, forms, batch=4, shown=0.5)
    common = {"stage": "detail", "lr": 1e-3, "warmup": 1, "log_every": 1, "optimizer": "muon"}
    common |= {"schedule": "constant", "config": config, "bf16": False}
    train_detail(TrainSettings(tmp_path / "a", steps=40, save_every=20, **common), data)
    rows = [json.loads(x) for x in (tmp_path / "a" / "detail.log.jsonl").read_text().splitlines()]
    assert np.mean([r["loss"] for r in rows[-10:]]) < np.mean([r["loss"] for r in rows[:5]]) - 0.2
    assert np.mean([r["off_thing"] for r in rows[-10:]]) < np.mean(
        [r["off_thing"] for r in rows[:5]]
    )
    assert np.mean([r["kind"] for r in rows[-10:]]) < np.mean([r["kind"] for r in rows[:5]])
    assert np.mean([r["anew"] for r in rows[-10:]]) < rows[0]["anew"]
    weights = read_safetensors(tmp_path / "a" / "detail.safetensors")
    known = read_safetensors(forms)  # by heart, so as they are
    assert all(
        torch.allclose(weights[f"forms.{k}"].float(), w, atol=1e-3) for k, w in known.items()
    )
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_it_goes_on_from_a_network_that_is_told_more_and_knows_less(samples, forms, tmp_path):
    small = DetailConfig(
        widths=(8, 16, 16), blocks=(1, 1), fine_blocks=2, told=12, cells=1, forms=8
    )
    lesser = dataclasses.replace(small, told=24, fine_blocks=1, cells=3, forms=0)
    wide = dataclasses.replace(get_config("edge"), detail=lesser)
    torch.manual_seed(0)
    start = tmp_path / "wide.safetensors"
    given = {k: v.contiguous() for k, v in DetailNet(wide).state_dict().items()}
    save_file(given, start)
    settings = TrainSettings(
        tmp_path / "on", "detail", steps=1, lr=1e-9, warmup=1, bf16=False,
        config=dataclasses.replace(wide, detail=small),
    )  # fmt: skip
    made = train_detail(settings, DetailData(samples, AUTOENCODER, forms, batch=2), start)
    got = read_safetensors(made)
    assert got["text.0.weight"].shape[0] == 12
    assert torch.allclose(got["inside.weight"].float(), given["inside.weight"], atol=1e-3)
    middle = given["latents.weight"][:, :, 1:2, 1:2]
    assert torch.allclose(got["latents.weight"].float(), middle, atol=1e-3)
    more = dataclasses.replace(settings, config=dataclasses.replace(wide, detail=DetailConfig()))
    with pytest.raises(UserError, match="is of another model"):
        train_detail(more, DetailData(samples, AUTOENCODER, forms), start)


def test_poses_go_with_the_pictures(samples, forms):
    """Wherever a square is cut or turned to, the thing's frame is on what is edited."""
    settings = TrainSettings(samples, "detail", steps=1, config=get_config("edge"), bf16=False)
    for warped, flip in ((0.0, False), (0.0, True), (1.0, False), (1.0, True)):
        step = DetailStep(None, settings, DetailData(samples, AUTOENCODER, forms, warped=warped))
        s = step.samples
        removed = [i for i in range(len(s.rows)) if s.tasks[s.rows[i, 2]] == "remove"]
        size = s.squares[s.rows[removed[0], 0]].size
        which = [i for i in removed if i in s.by_size[size]][:12]
        got = step.cut(which, flip, np.random.default_rng(3))
        off = []
        for source, target, pose in zip(got["source"], got["target"], got["pose"], strict=True):
            change = (source - target).abs().sum(0)
            y, x = torch.nonzero(change > 0.5 * change.max(), as_tuple=True)
            middle = torch.stack([x.float().median(), y.float().median()])
            unit = pose[2:8].norm() / 2**0.5
            off.append(float((middle - pose[:2]).norm() / unit))
        assert np.median(off) < 0.8, (warped, flip, off)  # a thing is two units tall


def test_seen_from_another_place_all_pictures_are_turned_alike(samples, forms):
    data = DetailData(samples, AUTOENCODER, forms, batch=8, warped=1.0)
    settings = TrainSettings(samples, "detail", steps=1, config=get_config("edge"), bf16=False)
    step = DetailStep(None, settings, data)
    rng = np.random.default_rng(2)
    plain = DetailStep(None, settings, dataclasses.replace(data, warped=0.0))
    which = [i for i in range(0, len(step.samples.rows), 7)][:8]
    size = step.samples.squares[step.samples.rows[which[0], 0]].size
    which = [i for i in which if i in step.samples.by_size[size]]
    near, far = plain.cut(which, False, rng), step.cut(which, False, rng)
    assert {k: v.shape for k, v in far.items()} == {k: v.shape for k, v in near.items()}
    assert (far["source"] - near["source"]).abs().mean() > 0.02
    # What the edit leaves alone is left alone still, and the source's latents are of its picture.
    outside = (far["mask"] == 0).expand(-1, 3, -1, -1)
    assert (far["made"] - far["source"])[outside].abs().mean() < 0.004
    channels = far["latents"].shape[1] // 2
    single = far["place"] == ALONE
    coded = step.autoencoder.encode(2 * far["source"][single][:, None] - 1, fine=False).latents
    assert single.any() and torch.allclose(coded, far["latents"][single][:, channels:], atol=1e-3)


def test_latents_made_anew_of_an_unturned_picture_are_the_streams_own(samples, forms):
    data = DetailData(samples, AUTOENCODER, forms)
    settings = TrainSettings(samples, "detail", steps=1, config=get_config("edge"), bf16=False)
    step = DetailStep(None, settings, data)
    own, frame = step.samples.squares[0], step.samples.frames[0]
    film = np.stack(step.samples.pictures["source"][frame])[:, *own.pixels]
    pixels = torch.from_numpy(film)[None].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    coded = step.autoencoder.encode(pixels, fine=False).latents[0]
    kept = torch.from_numpy(step.samples.latents[0][:, *own.cells]).float()[len(coded) :]
    assert (coded - kept).abs().mean() < 0.02 < kept.abs().mean()


def test_samples_without_poses_and_forms_of_other_things_are_refused(samples, forms, tmp_path):
    path = sorted(samples.glob("*"))[0]
    with safe_open(path, "pt") as file:
        kept = {k: file.get_tensor(k) for k in file.keys() if k != "pose"}  # noqa: SIM118
        save_file(kept, tmp_path / path.name, file.metadata())
    with pytest.raises(UserError, match="without poses; remove it"):
        DetailSamples(tmp_path)
    few = DetailConfig(widths=(8, 16, 16), blocks=(1, 1), forms=3)
    config = dataclasses.replace(get_config("edge"), detail=few)
    settings = TrainSettings(tmp_path / "out", "detail", steps=1, config=config, bf16=False)
    with pytest.raises(UserError, match=f"set forms to {len(KINDS)} or 0"):
        train_detail(settings, DetailData(samples, AUTOENCODER, forms))


def test_without_samples_it_says_which_stage_makes_them(tmp_path):
    with pytest.raises(UserError, match="run the stage detail_samples first"):
        DetailSamples(tmp_path)


def test_mirrored_latents_are_those_of_the_mirrored_picture():
    """Of a code that keeps all of smooth pictures."""
    torch.manual_seed(0)
    model = EdgeAutoencoder(AutoencoderConfig(latent_channels=32, width=16, deep_width=16))
    grid = torch.linspace(0, 6, 48)
    waves = [torch.sin(grid * f + p) for f, p in torch.rand(24, 2) * 2]
    films = torch.stack([a[:, None] * b for a, b in zip(waves, waves[::-1], strict=True)])
    films = films[:, None, None].expand(-1, 4, 3, -1, -1).contiguous()
    model.fit(films)
    coded, mirrored = (model.encode(x, fine=False).latents for x in (films, films.flip(-1)))
    made = mirror_latents(model, coded)
    assert (made - mirrored).square().mean() < 1e-3 * mirrored.square().mean()
    assert (coded - mirrored).square().mean() > 0.1 * mirrored.square().mean()
