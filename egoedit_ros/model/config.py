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
    change from the source latents instead of the velocity, see :mod:`egoedit_ros.model.flow`;
    gates: how many bands of latent channels it can say of, cell by cell, that the source's are
    gone.
    """

    layers: int = 8
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 1024
    in_channels: int = 128
    out_channels: int = 64
    text_dim: int = 384
    text_len: int = 48
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    cross_attn_norm: bool = True
    qk_norm: bool = True
    eps: float = 1e-6
    rope_theta: float = 10000.0
    anchored: bool = True
    gates: int = 0

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class AutoencoderConfig:
    """A streaming autoencoder; ``kind`` names the class that is built.

    ``edge`` (bundled; the sizes below are its), ``wan`` (Wan 2.1 through diffusers), ``taehv`` (the
    tiny one for the same latents), ``wan+taehv`` (Wan's encoder, the tiny decoder).
    """

    kind: str = "edge"
    latent_channels: int = 64
    width: int = 80
    deep_width: int = 160
    encoder_blocks: int = 1  # that look at the source for the decoder
    decoder_blocks: tuple[int, int] = (3, 3)  # at 1/8 and at 1/4 of the size
    spatial: int = 8
    temporal: int = 4


@dataclass(frozen=True)
class DetailConfig:
    """The network that draws an edit once more, finely (:mod:`egoedit_ros.model.detail`).

    widths: channels at 1/2, 1/4 and 1/8 of the size; blocks: at 1/8, and at 1/4 on the way back;
    fine_blocks: at 1/2 on the way back; answers: colours of its own to each pixel; queries: to the
    text; told: numbers that the text comes to; cells: of latents along a side that a cell sees (1
    or 3); forms: of things that it knows by heart (:mod:`egoedit_ros.model.forms`); 0: none, nor
    where things are; places: whether it looks again at where these are
    (:mod:`egoedit_ros.model.places`); lights: colours that it knows by name, to paint things in the
    light that falls (:mod:`egoedit_ros.model.light`); 0: none.
    """

    widths: tuple[int, int, int] = (40, 96, 192)
    blocks: tuple[int, int] = (3, 2)
    fine_blocks: int = 1
    answers: int = 3
    queries: int = 8
    told: int = 128
    cells: int = 3
    forms: int = 0
    places: bool = False
    lights: int = 0


@dataclass(frozen=True)
class EditorConfig:
    """A whole editor: networks, text encoder and how it streams.

    size: (width, height) in pixels. window_chunks: chunks of clean past that attention sees beside
    the current one. sink_chunks: first chunks of the stream that are never forgotten. shift:
    sigma' = shift * sigma / (1 + (shift - 1) * sigma). nfe: steps a chunk; ``edge`` is best in one:
    what it is asked for has one right answer, and it is too small to sharpen that in later steps
    (docs/training.md). strength: the noise to start from, before
    the shift; below 1 the edit starts from the noised source, which gives a text-to-video model
    (that has never seen a source) something to keep. steady, sharpen: what is done to the frames,
    see :mod:`egoedit_ros.stream.steady` (steady_forms: where forms are heeded, whose outlines are
    steadier by themselves) and :mod:`egoedit_ros.stream.edges`. text_encoder: see
    :func:`~egoedit_ros.model.text.get_text_encoder`; text_folder: where its weights are.
    """

    name: str = "edge"
    size: tuple[int, int] = (256, 192)
    chunk_latents: int = 1
    window_chunks: int = 2
    sink_chunks: int = 0
    nfe: int = 1
    shift: float = 5.0
    fps: float = 16.0
    strength: float = 1.0
    steady: tuple[float, ...] = ()
    steady_forms: tuple[float, ...] = ()
    sharpen: bool = False
    text_encoder: str = "minilm"
    text_folder: str = ""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    detail: DetailConfig | None = None

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict) -> EditorConfig:
        """The inverse of :meth:`to_dict`. Raises UserError on names it does not know."""
        try:
            values = dict(values)
            transformer = _from(TransformerConfig, values.pop("transformer"))
            autoencoder = _from(AutoencoderConfig, values.pop("autoencoder"))
            if (detail := values.pop("detail", None)) is not None:
                detail = _from(DetailConfig, detail)
            parts = {"transformer": transformer, "autoencoder": autoencoder, "detail": detail}
            return _from(EditorConfig, values, **parts)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"the model's configuration does not fit this version: {error}"
            ) from None


def _from(kind: type, values: dict, **more):
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**values, **more)


def _edge() -> EditorConfig:
    return EditorConfig(
        window_chunks=1,
        steady=(0.92, 0.8, 0.8, 0.8),
        steady_forms=(0.6, 0.3, 0.3, 0.3),
        sharpen=True,
        transformer=TransformerConfig(gates=3),
        detail=DetailConfig(told=72, fine_blocks=2, cells=1, forms=8, places=True, lights=9),
    )


def _wan(name: str, layers: int, heads: int, ffn_dim: int) -> EditorConfig:
    """Wan 2.1 as a channel-concat editor: 16 noise channels, then 16 of the source."""
    return EditorConfig(
        name=name,
        size=(832, 480),
        chunk_latents=3,
        window_chunks=6,  # with the current chunk the 21 latent frames it was trained on
        nfe=4,
        text_encoder="umt5",
        transformer=TransformerConfig(
            layers=layers,
            heads=heads,
            head_dim=128,
            ffn_dim=ffn_dim,
            in_channels=32,
            out_channels=16,
            text_dim=4096,
            text_len=512,
            anchored=False,
        ),
        autoencoder=AutoencoderConfig(kind="wan", latent_channels=16),
    )


def _egoedit_10b() -> EditorConfig:
    """EgoEdit-RT (App. B.1): 32 blocks, 4096 wide, 32 heads, 10.7B, T5 and CLIP, window 5.

    The paper does not state the MLP; 23,808 is what makes a plain one come to 10.7B.
    """
    base = _wan("egoedit-10b", 32, 32, 23808)
    return dataclasses.replace(
        base,
        size=(512, 384),
        window_chunks=5,
        text_encoder="t5+clip",
        transformer=dataclasses.replace(base.transformer, text_len=256 + 77),
    )


CONFIGS = {
    "edge": _edge,
    "wan-1.3b": lambda: _wan("wan-1.3b", 30, 12, 8960),
    "wan-14b": lambda: _wan("wan-14b", 40, 40, 13824),
    "egoedit-10b": _egoedit_10b,
}


def get_config(name: str) -> EditorConfig:
    """The configuration called ``name``. Raises UserError for a name that is not there."""
    if name not in CONFIGS:
        raise UserError(f"no model called {name!r}; use one of: {', '.join(sorted(CONFIGS))}")
    return CONFIGS[name]()
