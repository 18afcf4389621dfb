# SPDX-License-Identifier: Apache-2.0
"""How long a training step of a model takes on many GPUs, and whether it fits their memory.

From the same counts as ``egoedit plan``: FLOPs and bytes of the network itself on the meta device,
and the tensors that its backward pass keeps. Nothing here was run on a GPU; what is assumed is in
:class:`Cluster` and in the shares of :class:`~egoedit_ros.runtime.roofline.Device`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from egoedit_ros.errors import UserError
from egoedit_ros.model.config import EditorConfig, TransformerConfig
from egoedit_ros.model.transformer import Transformer, split_heads
from egoedit_ros.runtime.plan import META, forward_work
from egoedit_ros.runtime.roofline import Device, Work

# Backward is twice the forward's products; recomputing runs the forward once more.
BACKWARD, RECOMPUTED = 2, 3
# Bytes a weight: value, gradient, AdamW's two moments, average; all in float32.
TRAINED, AVERAGE, FROZEN = 16, 4, 4


@dataclass(frozen=True, slots=True)
class Cluster:
    """bus: bytes/s at which a GPU takes part in a collective over all nodes (8 x 400 Gbit/s to a
    node; assumed, not measured). Communication and work overlap."""

    gpus: int
    bus: float = 300e9


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the paper's recipe. clip_latents: of a training clip; critic_steps: to one of
    the generator; 0: no critic."""

    name: str
    batch: int
    steps: int
    clip_latents: int = 21
    critic_steps: int = 0
    streamed: bool = False


# EgoEdit App. B.2: clips of 81 frames.
PAPER_STAGES = (
    Stage("flow", 96, 30_000),
    Stage("dmd", 64, 4_500, critic_steps=5),
    Stage("self_forcing", 64, 4_500, critic_steps=10, streamed=True),
)


def grid_of(config: EditorConfig) -> tuple[int, int]:
    """Rows and columns of tokens of a latent frame."""
    side = 8 * config.transformer.patch[1]
    return config.size[1] // side, config.size[0] // side


def whole_forward(config: EditorConfig, latents: int) -> Work:
    """A pass over a clip of which all latent frames see each other."""
    return forward_work(config.transformer, grid_of(config), latents, 1, 0)[1]


def streamed_forward(config: EditorConfig, latents: int) -> tuple[Work, Work]:
    """One denoising step of every chunk of a clip, and the passes that write the cache."""
    chunks = latents // config.chunk_latents
    step = write = Work()
    for index in range(chunks):
        past = min(index, config.window_chunks)
        if index == chunks - 1 and index <= config.window_chunks:
            past -= 1  # the first chunk is hidden
        work = forward_work(
            config.transformer, grid_of(config), config.chunk_latents, config.window_chunks, past
        )
        step = step + work[1]
        if index + 1 < chunks:
            write = write + work[0]
    return step, write


def step_work(config: EditorConfig, stage: Stage) -> tuple[Work, int]:
    """Work of an average step for one clip, recomputing, and how many passes gather the weights."""
    whole = whole_forward(config, stage.clip_latents)
    learn = whole.times(1 + RECOMPUTED)
    if not stage.critic_steps:
        return learn, 2
    every = stage.critic_steps
    one, write = whole, Work()
    if stage.streamed:
        one, write = streamed_forward(config, stage.clip_latents)
    # In every ``every`` steps: so many critic steps and one of the generator. The exit step is
    # drawn evenly, so (nfe + 1) / 2 passes on average; counted in halves to stay whole.
    rollouts = one.times(config.nfe + 1) + write.times(2)
    critic = rollouts + learn.times(2)
    generator = one.times(config.nfe - 1 + 2 * (1 + RECOMPUTED)) + write.times(2) + whole.times(6)
    halves = critic.times(every) + generator
    chunks = stage.clip_latents // config.chunk_latents if stage.streamed else 1
    gathers = chunks * (config.nfe + 2) + 2  # of a critic step; the generator's are few beside
    return _share(halves, 2 * every), gathers


def _share(work: Work, of: int) -> Work:
    """A part of ``work``: the same operations, each done so much less often."""
    return Work({op: n / of for op, n in work.items()})


@dataclass(frozen=True)
class StepPlan:
    """seconds: of a step (the longer of work and communication, and the optimiser); clips: on a
    GPU; memory: bytes a GPU by kind; activations_whole: bytes without recomputing."""

    stage: Stage
    gpus: int
    clips: int
    seconds: float
    compute_s: float
    communication_s: float
    optimiser_s: float
    days: float
    memory: dict[str, float]
    activations_whole: float

    @property
    def total_bytes(self) -> float:
        return sum(self.memory.values())


def plan_step(
    config: EditorConfig, stage: Stage, device: Device, cluster: Cluster, fused: float = 1.0
) -> StepPlan:
    """A step of ``stage``. Raises UserError where the batch cannot be shared evenly.

    fused: share of the element-wise work that a compiler leaves; training compiles nothing.
    """
    if cluster.gpus < 1 or stage.batch % cluster.gpus:
        raise UserError(
            f"a batch of {stage.batch} ({stage.name}) cannot be shared by {cluster.gpus} GPUs; "
            "give a divisor of it"
        )
    weights, block = _weights(config.transformer)
    clips = stage.batch // cluster.gpus
    work, gathers = step_work(config, stage)
    compute = clips * device.seconds(work, fused=fused)
    # Gathered in bf16, gradients summed in float32.
    share = (cluster.gpus - 1) / cluster.gpus
    communication = share * weights * (2 * gathers + 4) / cluster.bus
    networks = 1 if not stage.critic_steps else 2
    moved = 9 * 4 * weights / cluster.gpus  # reads and writes of the five float32 copies
    optimiser = moved / (device.bandwidth * device.streaming)
    seconds = max(compute, communication) + optimiser
    kept = TRAINED * networks + AVERAGE + (FROZEN if stage.critic_steps else 0)
    per_block, inputs = activation_bytes(config, stage.clip_latents)
    cache = 0
    if stage.streamed:
        tokens = stage.clip_latents * grid_of(config)[0] * grid_of(config)[1]
        cache = 2 * 2 * tokens * config.transformer.dim * config.transformer.layers * clips
    memory = {
        "weights and optimiser": kept * weights / cluster.gpus,
        "gathered blocks": 3 * 2 * block + 4 * block,  # this and the next in bf16, a gradient
        "block inputs": clips * inputs * config.transformer.layers,
        "one block inside": clips * per_block,
        "keys and values": cache,
    }
    return StepPlan(
        stage, cluster.gpus, clips, seconds, compute, communication, optimiser,
        seconds * stage.steps / 86400, memory, clips * per_block * config.transformer.layers,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _weights(config: TransformerConfig) -> tuple[int, int]:
    """Numbers of a network, and of one of its blocks."""
    with META:
        one, two = (
            sum(p.numel() for p in Transformer(dataclasses.replace(config, layers=n)).parameters())
            for n in (1, 2)
        )
    return one + (config.layers - 1) * (two - one), two - one


# --- what the backward pass keeps --------------------------------------------


class _Flash(torch.autograd.Function):
    """Stands for fused attention: keeps q, k, v, the result and a number a row."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _AsFlash(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return _Flash.apply(*args[:3])
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=32)
def activation_bytes(config: EditorConfig, latents: int) -> tuple[int, int]:
    """Bytes that one block keeps for a clip's backward pass in bf16, and those of its input."""
    one, two = (_kept(config, latents, layers) for layers in (1, 2))
    rows, columns = grid_of(config)
    return two - one, 2 * latents * rows * columns * config.transformer.dim


def _kept(config: EditorConfig, latents: int, layers: int) -> int:
    shape = dataclasses.replace(config.transformer, layers=layers)
    with META:
        net = Transformer(shape).to(torch.bfloat16)
    owned = {p.untyped_storage()._cdata for p in net.parameters()}
    rows, columns = grid_of(config)
    side = shape.patch[1]
    frames = torch.empty(
        1, latents, shape.out_channels, rows * side, columns * side,
        dtype=torch.bfloat16, device=META,
    )  # fmt: skip
    words = torch.empty(1, shape.text_len, shape.text_dim, dtype=torch.bfloat16, device=META)
    storages: dict[int, tuple[object, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            # The storage itself is held, so that no other takes its place.
            storages[storage._cdata] = (storage, storage.nbytes())
        return tensor

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (split_heads(x, shape.heads) for x in (q, k, v))
        return _Flash.apply(*heads).transpose(1, 2).reshape(q.shape)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), _AsFlash():
        text = net.text(words)
        tokens = net.embed(frames)
        net(
            tokens, net.modulation(torch.empty(1, 1, device=META)), text, attend, (rows, columns)
        ).sum()
    return sum(size for _, size in storages.values())
