# SPDX-License-Identifier: Apache-2.0
"""A tiny autoencoder for Wan 2.1's latents, in the layout of TAEHV's ``taew2_1`` weights.

2D convolutions; time comes in through blocks that see the frame before (their memory), pooling of
neighbouring frames in the encoder and growing in the decoder. It knows pictures in 0..1 and latents
already normalised. The decoder gives 4 frames a latent, of which the first latent's first 3 lie
before the stream. The encoder takes frames in fours from the first on, the last ones repeated where
some are missing: a chunk's last latent stands, as in the published use, for one new frame and three
repeats of it, and those four are encoded again when the others are there.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.errors import UserError
from egoedit_ros.model.autoencoder import Coded
from egoedit_ros.model.checkpoint import fill
from egoedit_ros.model.tensor_files import open_tensors

FRAMES = 4  # of a latent


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class SoftBound(nn.Module):
    """Keeps latents within -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class MemoryBlock(nn.Module):
    """A residual block that sees each frame and the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class TimePool(nn.Module):
    """``stride`` neighbouring frames become one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class TimeGrow(nn.Module):
    """One frame becomes ``stride`` of them."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, stride * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


class TinyAutoencoder(nn.Module):
    """Weights only, named as in ``taew2_1``: ``encoder.N...`` and ``decoder.N...``."""

    def __init__(self, latent_channels: int = 16) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        encoder: list[nn.Module] = [_conv(3, 64), nn.ReLU()]
        for stride in (2, 2, 1):
            encoder += [TimePool(64, stride), _conv(64, 64, stride=2, bias=False)]
            encoder += [MemoryBlock(64) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, _conv(64, latent_channels))
        decoder: list[nn.Module] = [SoftBound(), _conv(latent_channels, 256), nn.ReLU()]
        for width, narrower, stride in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
            decoder += [MemoryBlock(width) for _ in range(3)]
            decoder += [nn.Upsample(scale_factor=2), TimeGrow(width, stride)]
            decoder += [_conv(width, narrower, bias=False)]
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), _conv(64, 3))

    def open_stream(self) -> TinyStream:
        return TinyStream(self)

    def place(self, device: torch.device, dtype: torch.dtype) -> TinyAutoencoder:
        """Move to ``device`` in ``dtype``."""
        return self.to(device, dtype, memory_format=torch.channels_last)


def _run(layers: nn.Sequential, x: Tensor, memory: dict[int, Tensor]) -> Tensor:
    """Frames ``[T, C, H, W]`` through the layers; ``memory`` keeps each block's last frame."""
    for index, layer in enumerate(layers):
        if isinstance(layer, MemoryBlock):
            last = memory.get(index)
            first = torch.zeros_like(x[:1]) if last is None else last
            memory[index] = x[-1:].clone()  # not a view that keeps all frames
            x = layer(x, torch.cat([first, x[:-1]]))
        else:
            x = layer(x)
    return x


class TinyStream:
    """An :class:`~egoedit_ros.model.autoencoder.AutoencoderStream` of the tiny autoencoder."""

    stateful = True

    def __init__(self, autoencoder: TinyAutoencoder) -> None:
        self._autoencoder = autoencoder
        self._seen: dict[int, Tensor] = {}
        self._open: Tensor | None = None  # the frame that begins the next four
        self._made: dict[int, Tensor] = {}

    def encode(self, pixels: Tensor, first: bool) -> Coded:
        layers = self._autoencoder.encoder
        x = (pixels + 1) / 2
        if first:
            self._seen, self._open = {}, None
        frames = x if self._open is None else torch.cat([self._open, x])
        whole, self._open = frames[:-1], frames[-1:]
        parts = [_run(layers, whole, self._seen)] if len(whole) else []
        if not first:  # its first latent was given a chunk ago, of the frame then known
            parts = [parts[0][1:]]
        # The memory must not keep the repeats.
        parts.append(_run(layers, self._open.expand(FRAMES, -1, -1, -1), dict(self._seen)))
        return Coded(torch.cat(parts), first)

    def decode(self, latents: Tensor, source: Coded) -> tuple[Tensor, None]:
        if source.first:
            self._made = {}
        frames = _run(self._autoencoder.decoder, latents, self._made)
        if source.first:
            frames = frames[FRAMES - 1 :]
        return frames.clamp(0, 1) * 2 - 1, None

    def memory_bytes(self) -> int:
        kept = [*self._seen.values(), *self._made.values()]
        return sum(t.nbytes for t in kept + ([] if self._open is None else [self._open]))


def read_tiny_autoencoder(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TinyAutoencoder:
    """The weights of a ``taew2_1.safetensors`` or ``.pth`` file. Raises UserError."""
    file = open_tensors(path)
    last = max(
        (n for n in file.shapes if n.startswith("encoder.") and n.endswith(".bias")),
        key=lambda n: int(n.split(".")[1]),
        default=None,
    )
    if last is None or "decoder.1.weight" not in file.shapes:
        raise UserError(f"{path} is no tiny autoencoder; give taew2_1.safetensors")
    with torch.device("meta"):
        model = TinyAutoencoder(file.shapes[last][0])
    wanted = model.state_dict()
    tensors = {name: file.read(name).to(device, dtype) for name in file.shapes}
    for name, tensor in tensors.items():
        # Published growing layers may make frames that are not asked for: the last are kept.
        if name in wanted and tensor.dim() == 4 and len(tensor) > len(wanted[name]):
            if ".conv.weight" in name and tensor.shape[1:] == wanted[name].shape[1:]:
                tensors[name] = tensor[-len(wanted[name]) :].clone()
    fill(model, tensors, path, assign=True)
    return model.eval().requires_grad_(False)
