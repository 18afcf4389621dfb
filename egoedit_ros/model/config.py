# SPDX-License-Identifier: Apache-2.0
"""Sizes of the editors. One transformer class serves all; a configuration decides its shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from egoedit_ros.errors import UserError


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the diffusion transformer, in the terms of diffusers' ``WanTransformer3DModel``.

    in_channels counts noise and source latents together (EgoEdit App. B.1: concatenated along
    channels, before patchify); noise channels come first. anchored: the network predicts the
    change from the source latents instead of the velocity, see :mod:`egoedit_ros.model.flow`.
    """

    layers: int = 8
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 1024
    in_channels: int = 64
    out_channels: int = 32
    text_dim: int = 384
    text_len: int = 48
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    cross_attn_norm: bool = True
    qk_norm: bool = True
    eps: float = 1e-6
    rope_theta: float = 10000.0
    anchored: bool = True

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the bundled streaming autoencoder; ``kind`` names the class that is built."""

    kind: str = "edge"
    latent_channels: int = 32
    width: int = 80
    deep_width: int = 160
    encoder_blocks: tuple[int, int] = (1, 1)
    decoder_blocks: tuple[int, int] = (2, 2)
    spatial: int = 8
    temporal: int = 4


@dataclass(frozen=True)
class EditorConfig:
    """A whole editor: networks, text encoder and how it streams.

    size: (width, height) in pixels. window_chunks: chunks of clean past that attention sees beside
    the current one. sink_chunks: first chunks of the stream that are never forgotten. shift:
    sigma' = shift * sigma / (1 + (shift - 1) * sigma).
    """

    name: str = "edge"
    size: tuple[int, int] = (256, 192)
    chunk_latents: int = 1
    window_chunks: int = 2
    sink_chunks: int = 0
    nfe: int = 2
    shift: float = 5.0
    fps: float = 16.0
    text_encoder: str = "minilm"
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict) -> EditorConfig:
        """The inverse of :meth:`to_dict`. Raises UserError on names it does not know."""
        try:
            values = dict(values)
            transformer = _from(TransformerConfig, values.pop("transformer"))
            autoencoder = _from(AutoencoderConfig, values.pop("autoencoder"))
            return _from(EditorConfig, values, transformer=transformer, autoencoder=autoencoder)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"the model's configuration does not fit this version: {error}"
            ) from None


def _from(kind: type, values: dict, **more):
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**values, **more)


def _edge() -> EditorConfig:
    return EditorConfig()


CONFIGS = {"edge": _edge}


def get_config(name: str) -> EditorConfig:
    """The configuration called ``name``. Raises UserError for a name that is not there."""
    if name not in CONFIGS:
        raise UserError(f"no model called {name!r}; use one of: {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]()
