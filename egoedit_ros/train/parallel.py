# SPDX-License-Identifier: Apache-2.0
"""One process or many: the same code, started by hand or by ``torchrun``.

Many share every batch (each takes each n-th sample of the same draw) and hold a part of every
weight (FSDP2), so that the run is the same as one process's, to rounding.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from egoedit_ros.errors import UserError
from egoedit_ros.model.device import no_cuda_because
from egoedit_ros.model.precision import best_dtype
from egoedit_ros.model.transformer import Block, Transformer


@dataclass(frozen=True)
class Group:
    """The processes of a run, and where this one computes."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")
    mesh: object = None

    @property
    def whole_device(self) -> torch.device:
        """Where a network may lie whole. Of many processes' GPUs none need have room for it: it
        stays on the host until :meth:`shard` moves this process's part over, block by block."""
        return self.device if self.count == 1 else torch.device("cpu")

    def share(self, whole: Tensor) -> Tensor:
        """This process's samples of a batch."""
        return whole if self.count == 1 else whole[self.rank :: self.count]

    def part(self, batch: int) -> int:
        """How many of a batch's samples are this process's. Raises UserError if they are uneven."""
        if batch % self.count:
            raise UserError(
                f"a batch of {batch} cannot be shared by {self.count} processes; make it a "
                "multiple of them"
            )
        return batch // self.count

    def normal(self, rng: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Unit noise for this process's samples: its part of what one process would draw."""
        whole = (shape[0] * self.count, *shape[1:])
        return self.share(torch.randn(whole, generator=rng, device=rng.device))

    def uniform(self, rng: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """The same of numbers in 0..1."""
        whole = (shape[0] * self.count, *shape[1:])
        return self.share(torch.rand(whole, generator=rng, device=rng.device))

    def mean(self, numbers: dict[str, Tensor | float]) -> dict[str, float]:
        """The mean of each number over the processes."""
        if self.count == 1 and not any(isinstance(v, Tensor) for v in numbers.values()):
            return {k: float(v) for k, v in numbers.items()}
        # One wait for the device, however many numbers there are.
        tensors = [torch.as_tensor(v, device=self.device).detach() for v in numbers.values()]
        both = torch.stack([_here(t).double() for t in tensors])
        if self.count > 1:
            dist.all_reduce(both)
        return dict(zip(numbers, (both / self.count).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return self.mean({"flag": float(flag)})["flag"] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def shard(self, net: nn.Module) -> nn.Module:
        """Let each process keep a part of every weight (nothing to do for one).

        The methods that the stages and the cache call beside ``forward`` gather weights as it
        does. The text's projections are used for all blocks at once, before the blocks, and so
        are gathered by themselves.
        """
        if self.count == 1:
            return net
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        policy = MixedPrecisionPolicy()
        if self.device.type == "cuda":
            policy = MixedPrecisionPolicy(
                param_dtype=best_dtype(self.device),
                reduce_dtype=torch.float32,
                cast_forward_inputs=False,  # timesteps need their digits
            )
        wrap = partial(fully_shard, mesh=self.mesh, mp_policy=policy)
        if isinstance(net, Transformer):
            for block in net.blocks:
                wrap([block.attn2.to_k, block.attn2.to_v, block.attn2.norm_k])
                wrap(block)
                register_fsdp_forward_method(block, "keys")
        wrap(net, reshard_after_forward=False)
        if isinstance(net, Transformer):
            for method in ("embed", "text", "modulation", "last_keys"):
                register_fsdp_forward_method(net, method)
        return net


def _here(tensor: Tensor) -> Tensor:
    """A tensor that may lie on many processes, as one on this device. Collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def join(device: str = "auto") -> Group:
    """This process's group: as ``torchrun`` says, or alone. device: auto, cpu or cuda."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"no device called {device!r}; use auto, cpu or cuda")
    cuda = torch.cuda.is_available() and device != "cpu"
    if device == "cuda" and not cuda:
        raise UserError(f"no CUDA device here: {no_cuda_because()}; or use device: cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cpu")
    if cuda:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if count == 1:
        return Group(device=place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    mesh = dist.device_mesh.init_device_mesh(place.type, (count,))
    return Group(dist.get_rank(), count, place, mesh)


def leave() -> None:
    """End what :func:`join` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def end() -> NoReturn:
    """:func:`leave`, then end this process at once, its work done.

    A thread of the process group may still let go of Python objects; where the interpreter is being
    taken down by then, it aborts a process whose work is done (gloo, one time in thirty here).
    """
    leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def alone(group: Group, stage: str) -> None:
    """Raise UserError where a stage that is one process's work was started as many."""
    if group.count > 1:
        raise UserError(f"the stage {stage} runs in one process; start it without torchrun")


def recompute_blocks(net: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass and compute the rest anew (gradient
    checkpointing): about a third more work, and memory that hardly grows with depth."""
    for block in getattr(net, "blocks", ()):
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_blocks(net: nn.Module) -> None:
    """Fuse what surrounds the attention (norms, modulation, gates, GELU) by ``torch.compile``.

    Attention stays as it is: what a token sees is a new closure at every step. One compilation
    serves all blocks; another is made for every shape of a batch.
    """
    torch._dynamo.config.recompile_limit = 64
    ask = torch.compile(Block.ask, dynamic=False)
    answer = torch.compile(Block.answer, dynamic=False)
    for block in getattr(net, "blocks", ()):
        block.ask, block.answer = partial(ask, block), partial(answer, block)
