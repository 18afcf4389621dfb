# SPDX-License-Identifier: Apache-2.0
"""Stages ``dmd`` and ``self_forcing``: distribution matching distillation (Yin et al. 2024).

Three networks: the generator, whose few-step results are to look like the teacher's; the real
score, which is the frozen teacher, guided; the fake score, which starts from the teacher and keeps
learning what the generator makes at present. The generator follows the difference of the two:

    grad = (fake(x_t) - real(x_t)) / mean |x - real(x_t)|,  loss = MSE(x, stopgrad(x - grad)) / 2

in clean latents, t uniform, shifted, kept in 2% to 98% (Self Forcing's losses). The stages differ
in how x is made: in a few steps for the whole clip at once (EgoEdit's 80 -> 4 NFE), or chunk by
chunk through the inference cache (:mod:`egoedit_ros.train.self_forcing`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import EditorConfig
from egoedit_ros.model.flow import add_noise, shift_sigma, step_sigmas
from egoedit_ros.model.transformer import Transformer
from egoedit_ros.train.batches import (
    Batch,
    FlowData,
    Mixed,
    Resident,
    open_clips,
    sample_batch,
)
from egoedit_ros.train.denoise import LEAST_SIGMA, Denoiser, guided
from egoedit_ros.train.flow import empty_text, new_transformer, uses_velocity, weighted
from egoedit_ros.train.loop import Critic, Trainer, TrainSettings
from egoedit_ros.train.parallel import Group, join

SIGMA_RANGE = (0.02, 0.98)
# Clean latents of a batch: (network, batch, exit step, a draw of unit noise of a given shape).
Rollout = Callable[[Transformer, Batch, int, Callable[[tuple[int, ...]], Tensor]], Tensor]


@dataclass(frozen=True)
class DistillData:
    """teacher: weights of the bidirectional editor; fake: what the fake score starts from (None:
    the teacher). guidance: of the real score. nfe: steps of the generator, 0: the editor's own.
    score_shift: of the noise at which scores are compared, None: the editor's. target_weight: of
    an added squared error against the clip's own target, which the paper does not have; 0: none.
    """

    teacher: Path
    fake: Path | None = None
    guidance: float = 4.0
    nfe: int = 0
    score_shift: float | None = None
    target_weight: float = 0.0


def score_sigma(u: Tensor, shift: float) -> Tensor:
    """Noise levels at which the scores are compared: uniform ``u``, shifted, clamped."""
    return shift_sigma(u, shift).clamp(*SIGMA_RANGE)


def dmd_gradient(made: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Where to move ``made`` away from, ``[B, F, C, h, w]``; all are clean latents."""
    size = (made - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return (fake - real) / size.clamp(min=1e-6)


def dmd_loss(made: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient to ``made`` is ``gradient`` over the number of its elements."""
    return 0.5 * F.mse_loss(made.double(), (made - gradient).detach().double())


def rollout_whole(config: EditorConfig, nfe: int, crop: bool) -> Rollout:
    """The whole clip at once: steps before the exit without gradient, the exit step with."""
    sigmas = step_sigmas(nfe, config.shift)

    def rollout(net, batch, exit_step, draw):
        corners = batch.corners if crop else None
        shape = batch.target.shape
        noisy = draw(shape)
        with torch.no_grad():
            denoise = Denoiser(net, config, batch.source, batch.text, corners)
            for index in range(exit_step):
                clean = denoise(noisy, _level(sigmas[index], noisy))
                noisy = add_noise(clean, draw(shape), sigmas[index + 1])
        denoise = Denoiser(net, config, batch.source, batch.text, corners)
        return denoise(noisy, _level(sigmas[exit_step], noisy))

    return rollout


def _level(sigma: float, like: Tensor) -> Tensor:
    return torch.full((len(like), 1), sigma, device=like.device)


class Distiller:
    """The generator's and the critic's steps.

    Both draw their own batch, text and noise. The real score's unguided half sees the empty text.
    """

    def __init__(
        self,
        generator: Transformer,
        real: Transformer,
        fake: Transformer,
        config: EditorConfig,
        data: FlowData,
        distill: DistillData,
        clips,
        empty: Tensor,
        group: Group,
        make_rollout: Callable[[FlowData], Rollout],
    ) -> None:
        self.generator, self.real, self.fake, self.config = generator, real, fake, config
        self.data, self.distill, self.clips, self.group = data, distill, clips, group
        self.empty = empty.to(group.device)
        self.nfe = distill.nfe or config.nfe
        self.shift = config.shift if distill.score_shift is None else distill.score_shift
        self.make_rollout = make_rollout
        self.seen: Batch | None = None
        self.done: Callable[[], int] = lambda: 0  # the step's number

    def _begin(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[FlowData, Batch, int, Rollout, Callable[[tuple[int, ...]], Tensor]]:
        view = self.data.draw_view(rng)
        if isinstance(self.clips, Mixed):
            self.clips.go_to(self.done())
        batch = self.seen = sample_batch(rng, self.clips, view, self.group)
        # The same for all chunks, samples and processes.
        exit_step = int(rng.integers(self.nfe))
        draw = lambda shape: self.group.normal(noise, shape)  # noqa: E731
        return view, batch, exit_step, self.make_rollout(view), draw

    def _noised(self, made: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """made at a level of its own for each sample: (noisy, sigma ``[B, 1]``)."""
        sigma = score_sigma(self.group.uniform(noise, (len(made), 1)), self.shift)
        level = sigma[..., None, None, None]
        return add_noise(made, self.group.normal(noise, made.shape), level), sigma

    def generator_step(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        view, batch, exit_step, rollout, draw = self._begin(rng, noise)
        made = rollout(self.generator, batch, exit_step, draw).float()
        corners = batch.corners if view.crop else None
        with torch.no_grad():
            noisy, sigma = self._noised(made.detach(), noise)
            told = Denoiser(self.real, self.config, batch.source, batch.text, corners)
            untold = None
            if self.distill.guidance != 1:
                text = self.empty.expand(len(batch.text), -1, -1)
                untold = Denoiser(self.real, self.config, batch.source, text, corners)
            real = guided(told, untold, self.distill.guidance)(noisy, sigma)
            fake = Denoiser(self.fake, self.config, batch.source, batch.text, corners)(noisy, sigma)
            gradient = dmd_gradient(made, fake, real)
        loss = dmd_loss(made, gradient)
        if self.distill.target_weight:
            loss = loss + self.distill.target_weight * weighted(made, batch, view)[0]
        with torch.no_grad():
            inside = batch.edited.unsqueeze(2)
            error = (made - batch.target).square() * inside
            change = (batch.source - batch.target).square() * inside
            report = {
                "gradient": gradient.abs().mean(),
                "latent_gain": 1 - error.sum() / change.sum().clamp(min=1e-6),
            }
        return loss, report

    def critic_step(
        self, rng: np.random.Generator, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching of the fake score on what the generator makes."""
        view, batch, exit_step, rollout, draw = self._begin(rng, noise)
        with torch.no_grad():
            made = rollout(self.generator, batch, exit_step, draw).float()
        noisy, sigma = self._noised(made, noise)
        corners = batch.corners if view.crop else None
        said = Denoiser(self.fake, self.config, batch.source, batch.text, corners)(noisy, sigma)
        error = (said - made).square()
        if uses_velocity(self.config, view.loss):
            # Both velocities are (noisy - x0) / sigma.
            error = error / sigma[..., None, None, None].clamp(min=LEAST_SIGMA).square()
        return error.mean(), {}

    def batch(self) -> dict[str, Tensor]:
        return self.seen.tensors() if self.seen else {}


def distill(
    settings: TrainSettings,
    data: FlowData,
    given: DistillData,
    start: Path | None,
    make_rollout: Callable[[EditorConfig, int, FlowData], Rollout],
    sampler=None,
    resident: Resident | None = None,
) -> Path:
    """Run a distilling stage; start: the generator's first weights, None: the teacher's."""
    data.check()
    data.refuse_flow_only(settings.stage)
    config = settings.editor
    nfe = given.nfe or config.nfe
    if nfe < 1 or given.guidance < 0 or given.target_weight < 0:
        raise UserError("nfe, guidance and target_weight of the recipe must not be negative")
    torch.manual_seed(settings.seed)
    group = join(settings.device)
    real = new_transformer(config, given.teacher, group).requires_grad_(False)
    same = given.fake in (None, given.teacher)
    fake = copy.deepcopy(real) if same else new_transformer(config, given.fake, group)
    fake.requires_grad_(True)
    group.shard(real)  # before the next is loaded: whole, each takes the host's memory
    generator = new_transformer(config, start or given.teacher, group)
    steps = Distiller(
        generator,
        real,
        fake,
        config,
        data,
        given,
        resident or open_clips(data, settings.seed, group),
        empty_text(config),
        group,
        lambda view: make_rollout(config, nfe, view),
    )
    rate = settings.lr if settings.critic_lr is None else settings.critic_lr
    trainer = Trainer(
        generator,
        settings,
        steps.generator_step,
        critic=Critic(fake, steps.critic_step, settings.critic_steps, rate),
        data={"data": data.__dict__, "distill": given.__dict__},
        group=group,
        batch=steps.batch,
        sampler=sampler,
    )
    steps.done = lambda: trainer.done
    return trainer.run()


def train_dmd(
    settings: TrainSettings,
    data: FlowData,
    given: DistillData,
    start: Path | None = None,
    sampler=None,
    resident: Resident | None = None,
) -> Path:
    """Stage ``dmd``: the bidirectional editor in few steps, its guidance built in."""

    def make(config: EditorConfig, nfe: int, view: FlowData) -> Rollout:
        return rollout_whole(config, nfe, bool(view.crop))

    return distill(settings, data, given, start, make, sampler, resident)
