# SPDX-License-Identifier: Apache-2.0
"""Stage ``lights``: learn what light falls in a picture (of ``room_views``), and which colour a
text wants a thing to have; and measure of what colour second materials are, a bottle's cap and the
like (:mod:`egoedit_ros.model.light`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.data.sim.render import FPS
from egoedit_ros.data.sim.scene import draw_scene
from egoedit_ros.data.sim.vocabulary import COLORS, KINDS
from egoedit_ros.errors import UserError
from egoedit_ros.model.checkpoint import fill, read_safetensors
from egoedit_ros.model.config import DetailConfig
from egoedit_ros.model.forms import Forms
from egoedit_ros.model.light import SEEN_SIZE, Lights, shade
from egoedit_ros.model.pose import FRAME, POSE
from egoedit_ros.train.detail_samples import FRAMES, draw_jobs
from egoedit_ros.train.loop import Trainer, TrainSettings
from egoedit_ros.train.rooms import Rooms
from egoedit_ros.train.scenes import training_seeds

FACES = 64  # on which a light is compared
TO_KEY, TO_FILL = 0.1, 0.05  # what directions count
BRIGHTER = 0.2  # logarithm of how much pictures are brighter or darker than they are
MOST = 0.98  # share of a picture that stays below white
UNHEARD, UNSURE = 0.05, 0.01  # share of words left out; of chances that are for other colours
INSIDE, WHITE = 0.05, 0.97  # units within an outline; what is brighter may be brighter still
FEW = 30  # pixels of a second material
LIT = 0.7  # quantile of them that is taken: some are in a shadow


@dataclass(frozen=True)
class LightsData:
    """rooms: the folder of stage ``room_views``; forms: weights of stage ``forms``; seeds: rows of
    (first, count) of scenes of whose edits the texts are; batch: pictures to a step; texts:
    likewise."""

    rooms: Path
    forms: Path
    seeds: tuple = ((300_000, 3000),)
    batch: int = 64
    texts: int = 256


def colored_texts(seeds: tuple) -> list[tuple[str, int]]:
    """Instructions about a thing, and which of ``COLORS`` it has then. Raises UserError for seeds
    that are kept for evaluation."""
    names, out = list(COLORS), []
    for seed in training_seeds("lights", seeds):
        edits, jobs = draw_jobs(draw_scene(seed, FRAMES / FPS))
        for _, to, _, text, _ in jobs:
            after = edits[to - 1].changes[0][1]
            if after.visible:
                out.append((text, names.index(after.color)))
    return out


class LightsStep:
    """Some pictures' lights and some texts' colours: how far what is told is off."""

    def __init__(self, model: Lights, data: LightsData, rooms: Rooms, encode) -> None:
        self.model, self.data = model, data
        parts = torch.from_numpy(rooms.pictures).split(500)
        self.pictures = torch.cat([small(part) for part in parts])
        self.lights = torch.from_numpy(rooms.lights)
        told = colored_texts(data.seeds)
        self.colors = torch.tensor([color for _, color in told])
        texts = sorted({text for text, _ in told})
        number = {text: i for i, text in enumerate(texts)}
        self.text = torch.tensor([number[text] for text, _ in told])
        place = torch.device("cpu")
        embedded = [
            encode.many(texts[i : i + 256], place).half() for i in range(0, len(texts), 256)
        ]
        self.embedded = torch.cat(embedded)

    def __call__(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.from_numpy(rng.integers(len(self.pictures), size=self.data.batch))
        pictures, lights = varied(self.pictures[rows].float(), self.lights[rows], noise)
        loss, off = light_loss(self.model.net(pictures), lights, noise)
        rows = torch.from_numpy(rng.integers(len(self.text), size=self.data.texts))
        words = self.embedded[self.text[rows]].float()
        heard = torch.rand(*words.shape[:2], 1, generator=noise) > UNHEARD
        chances = self.model.reader(words * heard)
        named = F.cross_entropy(chances, self.colors[rows], label_smoothing=UNSURE)
        right = (chances.argmax(1) == self.colors[rows]).float().mean()
        return loss + named, {"light": off, "colors": right.detach()}


def small(pictures: Tensor) -> Tensor:
    """uint8 ``[N, h, w, 3]`` as :class:`~egoedit_ros.model.light.LightNet` sees them, float16."""
    return F.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2).float() / 255, SEEN_SIZE).half()


def varied(pictures: Tensor, lights: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some of the pictures mirrored, all brighter or darker, and their lights likewise."""
    count = len(pictures)
    mirrored = torch.rand(count, 1, generator=noise) < 0.5
    pictures = torch.where(mirrored[:, :, None, None], pictures.flip(3), pictures)
    other = lights.clone()
    other[:, [8, 11]] *= -1  # how far to the right
    lights = torch.where(mirrored, other, lights)
    brighter = torch.exp(BRIGHTER * torch.randn(count, generator=noise))
    most = 1 / pictures.flatten(1).quantile(MOST, dim=1).clamp(min=0.2)
    brighter = torch.minimum(brighter, most.clamp(min=1))[:, None]
    pictures = (pictures * brighter[:, :, None, None]).clamp(0, 1)
    pictures = pictures + 0.01 * torch.randn(pictures.shape, generator=noise)
    return pictures, torch.cat([lights[:, :8] * brighter, lights[:, 8:]], 1)


def light_loss(said: Tensor, lights: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """By how much faces would look other in what is said ``[N, LIGHT]`` than in the light; and that
    of faces which the key meets."""
    faces = F.normalize(torch.randn(len(said), 3, FACES, generator=noise), dim=1)
    faces = torch.cat([faces[:, :2], -faces[:, 2:].abs()], 1)  # towards the camera
    (rest, key), (true_rest, true_key) = shade(said, faces), shade(lights, faces)
    in_light = (rest + key - true_rest - true_key).abs().mean()
    off = [1 - (said[:, i : i + 3] * lights[:, i : i + 3]).sum(1).mean() for i in (8, 11)]
    loss = in_light + (rest - true_rest).abs().mean() + TO_KEY * off[0] + TO_FILL * off[1]
    return loss, in_light.detach()


@torch.no_grad()
def second_colors(forms: Forms, rooms: Rooms, most: int = 60) -> Tensor:
    """The colours of forms' second materials ``[forms, 3]``, grey where there is none: what is seen
    of them over the light that falls there, in ``most`` pictures of each."""
    out = torch.full((len(KINDS), 3), 0.5)
    for kind in range(len(KINDS)):
        seen_colors = []
        for row in rooms.things[rooms.things[:, 1] == kind][:most]:
            number = int(row[0])
            picture = torch.from_numpy(rooms.pictures[number]).permute(2, 0, 1)[None].float() / 255
            pose = torch.zeros(1, POSE)
            pose[0, :FRAME] = torch.from_numpy(row[2:])
            half = F.avg_pool2d(picture, 2)
            seen = forms(pose, torch.eye(len(KINDS) + 1)[[kind]], tuple(half.shape[2:]), 2)
            light = torch.from_numpy(rooms.lights[number])[None]
            rest, key = shade(light, F.normalize(seen[:, 2:5], dim=1))
            inside = (seen[0, 0] > INSIDE) & (seen[0, 1] > INSIDE) & (half[0].amax(0) < WHITE)
            seen_colors.append((half / (rest + key))[0][:, inside])
        colors = torch.cat(seen_colors, 1) if seen_colors else torch.zeros(3, 0)
        if colors.shape[1] > FEW:
            out[kind] = colors.quantile(LIT, 1).clamp(0, 1)
    return out


def train_lights(settings: TrainSettings, data: LightsData) -> Path:
    """Run the stage; the checkpoint is a :class:`Lights`."""
    from egoedit_ros.model.text import get_text_encoder

    torch.manual_seed(settings.seed)
    editor = settings.editor
    config = editor.detail or DetailConfig()
    if (config.lights, config.forms) != (len(COLORS), len(KINDS)):
        raise UserError(
            f"lights: the detail network has {config.lights} lights and {config.forms} forms, but "
            f"the simulator knows {len(COLORS)} colours and {len(KINDS)} kinds; set these"
        )
    rooms = Rooms.read(data.rooms)
    forms = Forms(config).eval().requires_grad_(False)
    fill(forms, read_safetensors(data.forms), data.forms)
    words = editor.transformer
    model = Lights(words.text_dim, config.lights, config.forms)
    model.colors.copy_(torch.tensor(list(COLORS.values())))
    model.second.copy_(second_colors(forms, rooms))
    encode = get_text_encoder(editor.text_encoder, words.text_len, editor.text_folder)
    model = model.to(memory_format=torch.channels_last)
    step = LightsStep(model, data, rooms, encode)
    return Trainer(model, settings, step, data={"data": data.__dict__}).run()
