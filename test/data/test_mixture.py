# SPDX-License-Identifier: Apache-2.0
"""The mixture: exact shares, an order that depends on seed and step alone, and what goes wrong."""

import json
import multiprocessing
import os
import signal
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from egoedit_ros.data.latents import LatentClip, LatentFolder, write_latents
from egoedit_ros.data.mixture import PAPER, Mixture, Source, read_batches
from egoedit_ros.errors import UserError


def latent_clip(number, frames=3, edits=2, tasks=()):
    fill = torch.full((2, 1 + edits, frames, 4, 2, 2), float(number)).half()
    fill[:, 1:] += torch.arange(edits).view(-1, 1, 1, 1, 1).half() / 8
    edited = torch.ones(2, edits, frames, 2, 2, dtype=torch.bool)
    return LatentClip(fill, edited, torch.full((edits, 2, 8), float(number)).half(), tasks)


def make(folder, numbers, shard=0, **more):
    """Clips whose latents are their number, one a file or ``shard`` a file."""
    folder.mkdir(parents=True, exist_ok=True)
    step = shard or 1
    for i in range(0, len(numbers), step):
        clips = {f"{n:08d}": latent_clip(n, **more) for n in numbers[i : i + step]}
        texts = {stem: ["do"] * clip.text.shape[0] for stem, clip in clips.items()}
        write_latents(folder, clips, texts, bool(shard))
    return folder


def numbers(clips):
    return [int(c.latents.flatten()[0]) for c in clips]


@pytest.fixture
def three(tmp_path):
    make(tmp_path / "ego", range(0, 7))
    make(tmp_path / "videos", range(100, 113), shard=5)
    make(tmp_path / "images", range(200, 204), frames=1)
    return [Source(tmp_path / n, w, n) for n, w in zip(("ego", "videos", "images"),
                                                       PAPER.values(), strict=True)]  # fmt: skip


def test_the_papers_shares_are_exact_and_every_clip_takes_its_turn(three):
    mixture = Mixture(three, seed=3)
    drawn = [mixture.draw(n) for n in range(300)]
    for block in range(3):
        shares = Counter(d.source for d in drawn[100 * block : 100 * block + 100])
        assert [shares[i] for i in range(3)] == [28, 52, 20]
    for source, length in enumerate((7, 13, 4)):
        order = [d.clip for d in drawn if d.source == source]
        for turn in range(len(order) // length):
            assert sorted(order[turn * length : (turn + 1) * length]) == list(range(length))
    assert [mixture.draw(n) for n in (299, 12, 150)] == [drawn[n] for n in (299, 12, 150)]
    assert [Mixture(three, seed=4).draw(n) for n in range(50)] != drawn[:50]


def test_odd_weights_still_make_a_hundred(three):
    for weights in ((1, 1, 1), (1000, 1, 1), (0.2, 0.3, 0.1)):
        sources = [Source(s.latents, w) for s, w in zip(three, weights, strict=True)]
        counts = Mixture(sources).counts
        assert sum(counts) == 100 and min(counts) >= 1
    assert Mixture([Source(s.latents, w) for s, w in zip(three, (1000, 1, 1), strict=True)]
                   ).counts == (98, 1, 1)  # fmt: skip


def test_readers_give_the_same_order_however_many_and_from_any_step(three):
    mixture = Mixture(three, seed=1)
    alone = {s: numbers(c) for s, c in read_batches(mixture, 4, 0, 6, workers=0)}
    assert {s: numbers(c) for s, c in read_batches(mixture, 4, 0, 6, workers=2)} == alone
    later = {s: numbers(c) for s, c in read_batches(mixture, 4, 4, 6, workers=0)}
    assert later == {s: alone[s] for s in (4, 5)}
    halves = [mixture.batch(2, 4, rank=rank, count=2) for rank in range(2)]
    assert [n for pair in zip(*map(numbers, halves), strict=True) for n in pair] == alone[2]


def test_pictures_stand_still_among_videos(three):
    mixture = Mixture(three)
    clips = mixture.batch(0, 100, frames=3)
    assert {c.latents.shape[2] for c in clips} == {3} and {c.edited.shape[2] for c in clips} == {3}
    picture = next(c for c in clips if c.latents[0, 0, 0, 0, 0, 0] >= 200)
    assert torch.equal(picture.latents[:, :, 0], picture.latents[:, :, 2])


def test_tasks_and_shares_pick_a_part(tmp_path):
    folder = make(tmp_path / "a", range(60), shard=7, tasks=("replace", "add"))
    assert [c.tasks for c in LatentFolder(folder)][:1] == [("replace", "add")]
    only = LatentFolder(folder, tasks=["add"])
    assert len(only) == 60 and only[9].text.shape[0] == 1 and only[9].tasks == ("add",)
    assert float(only[9].latents[0, 1].flatten()[0]) == 9.125  # the second edit's target
    quarter, most = (set(LatentFolder(folder, share=s).stems) for s in (0.25, 0.75))
    assert 5 < len(quarter) < 25 < len(most) < 60 and quarter < most
    with pytest.raises(UserError, match="no clip of waltz"):
        LatentFolder(folder, tasks=["waltz"])


def test_files_of_before_are_read(tmp_path):
    clip = latent_clip(5)
    tensors = {"latents": clip.latents, "edited": clip.edited, "text": clip.text}
    save_file(tensors, tmp_path / "00000005.safetensors",
              metadata={"instructions": json.dumps(["a", "b"])})  # fmt: skip
    make(tmp_path, [6, 7], shard=2)
    folder = LatentFolder(tmp_path)
    assert folder.stems == ["00000005", "00000006", "00000007"] and folder[0].tasks == ()
    assert numbers(folder) == [5, 6, 7]
    with pytest.raises(UserError, match="do not tell their tasks"):
        LatentFolder(tmp_path, tasks=["add"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latents": "x"}, "must name latents and weight"),
        ({"latents": "x", "weight": 1, "colour": "red"}, "must name latents and weight"),
        ({"latents": "x", "weight": 0}, "weight must be above 0"),
        ({"latents": "x", "weight": "much"}, "weight must be above 0"),
        ({"latents": "x", "weight": 1, "share": 1.5}, "share in 0..1"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        Source.of(values)


def test_missing_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no latents in .*nowhere"):
        Mixture([Source(tmp_path / "nowhere", 1)])
    folder = make(tmp_path / "a", [1, 2])
    (folder / "00000003.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(UserError, match="00000003.safetensors holds no latents"):
        Mixture([Source(folder, 1)])
    with pytest.raises(UserError, match="no source"):
        Mixture([])


def test_sources_of_different_sizes_are_refused(tmp_path):
    make(tmp_path / "a", [1])
    clip = latent_clip(2)
    large = LatentClip(clip.latents.repeat(1, 1, 1, 1, 2, 2), clip.edited, clip.text)
    (tmp_path / "b").mkdir()
    write_latents(tmp_path / "b", {"00000002": large}, {"00000002": ["do", "do"]}, False)
    with pytest.raises(UserError, match="b has latents and texts of 4x4x4 and 2x8, .*4x2x2"):
        Mixture([Source(tmp_path / name, 1) for name in "ab"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_goes_bad_during_training_is_one_line(tmp_path, workers):
    folder = make(tmp_path / "a", [1, 2])
    mixture = Mixture([Source.of({"latents": str(folder), "weight": 2})])
    (folder / "00000001.safetensors").unlink()
    with pytest.raises(UserError, match="00000001.safetensors cannot be read") as caught:
        list(read_batches(mixture, 2, 0, 3, workers=workers))
    assert "\n" not in str(caught.value)


def test_a_reader_that_is_killed_is_one_line(tmp_path):
    mixture = Mixture([Source(make(tmp_path / "a", range(9)), 1)])
    batches = read_batches(mixture, 2, 0, 2000, workers=1)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="process ended with code -9 at step .*start") as caught:
        for _ in batches:
            pass
    assert "\n" not in str(caught.value)
