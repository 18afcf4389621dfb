# SPDX-License-Identifier: Apache-2.0
"""Draws what an edit's middle shows once more, finely: outlines that latents only hint at.

A latent cell is 8x8 pixels, and what a small transformer is not sure of it draws softly. This
network sees one picture at a time, a square around the edit: the camera's pixels, what the decoder
made of the edit, both latents and the text. For each pixel it weighs several answers (the camera's
colour, the decoder's, some of its own, and what the forms have there that it knows by heart,
:mod:`egoedit_ros.model.forms`), of which one is shown (:mod:`egoedit_ros.model.answers`). Where
that is the camera's colour it is that to the bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egoedit_ros.model.answers import BODIES, Answers, Outlines, Whole
from egoedit_ros.model.autoencoder import CELL
from egoedit_ros.model.config import DetailConfig, EditorConfig
from egoedit_ros.model.forms import SEEN, Forms, outside, relit
from egoedit_ros.model.light import Lights, heard
from egoedit_ros.model.places import Places
from egoedit_ros.model.pose import FRAME

PLACES = 5  # a latent frame's four pictures, and the single one that begins a stream
ALONE = 4  # the latter's place
SURE = 0.004  # width of the answer that is the camera's own colour; of colours 0..1
UNHEARD = 10.0  # nats by which a form's answer is unlikely outside of it, before the network speaks
SURE_OF_KIND, OPEN = 0.95, 0.02  # how likely a form is by the text; less: the picture decides
SAME, OTHER = 1.5, 2.5  # logits of a text: below it but colours a thing, above it surely does more
NARROWEST, WIDEST = 0.006, 0.5


class _Block(nn.Module):
    """Residual; the text scales and shifts what its layers see."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.text = nn.Linear(text, 2 * width)
        for layer in (self.conv2, self.text):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.text(text)[:, :, None, None].chunk(2, 1)
        inner = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        inner = self.conv1(inner) * (1 + scale) + shift
        return x + self.conv2(F.silu(inner))


def _blocks(count: int, width: int, text: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, text) for _ in range(count))


def _through(blocks: nn.ModuleList, x: Tensor, text: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, text)
    return x


class _FormHead(nn.Module):
    """What is seen of forms decides between answers: at half the size, added to what was said."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        inner = 48
        self.inside = nn.Conv2d(SEEN + width + 7 * 4, inner, 3, padding=1)
        self.layer = nn.Conv2d(inner, inner, 3, padding=1)
        self.out = nn.Conv2d(inner, out, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, seen: Tensor, x: Tensor, pixels: Tensor) -> Tensor:
        x = self.inside(torch.cat([seen, _normed(x), pixels], 1))
        x = self.layer(F.silu(_normed(x)))
        return self.out(F.silu(_normed(x)))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class _PoseHead(nn.Module):
    """Each cell says where it takes the two bodies to be, and how much it is to be heeded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, out = 96, 2 * FRAME + 1 + 2
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1), nn.SiLU(), nn.Conv2d(inner, inner, 3, padding=1), nn.SiLU(),
            nn.Conv2d(inner, out, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[N, C, h, w]`` of cells to poses ``[N, POSE]``."""
        said = self.layers(_normed(x)).float().flatten(2)
        heeded = said[:, -2:].softmax(-1)
        middle = [torch.arange(n, device=x.device) * CELL + (CELL - 1) / 2 for n in x.shape[2:]]
        rows, columns = torch.meshgrid(*middle, indexing="ij")
        cell = torch.stack([columns, rows]).flatten(1)
        parts = []
        for body in range(2):
            at, along, line = said[:, body * FRAME : (body + 1) * FRAME].split([2, 6, 3], 1)
            told = torch.cat([cell + CELL * at, CELL * along, line], 1)
            told = (told * heeded[:, body, None]).sum(-1)
            parts += [told[:, :8], F.normalize(told[:, 8:], dim=-1)]
        curl = (said[:, 2 * FRAME] * heeded[:, 1]).sum(-1, keepdim=True)
        return torch.cat([*parts, curl], 1)


class DetailNet(nn.Module):
    """Weights only; all pictures are squares of one size, a multiple of 8. Letters: N pictures."""

    def __init__(self, editor: EditorConfig) -> None:
        super().__init__()
        self.config = config = editor.detail or DetailConfig()
        words, channels = editor.transformer.text_dim, editor.autoencoder.latent_channels
        fine, middle, deep = config.widths
        self.keys = nn.Linear(words, 64)
        self.values = nn.Linear(words, 64)
        self.queries = nn.Parameter(torch.randn(config.queries, 64) / 4)
        text = config.told
        self.text = nn.Sequential(nn.Linear(64 * config.queries, text), nn.SiLU())
        self.inside = nn.Conv2d(7 * 4, fine, 3, padding=1)
        self.fine_blocks = _blocks(1, fine, text)
        self.down1 = nn.Conv2d(4 * fine, middle, 1)
        self.middle_blocks = _blocks(1, middle, text)
        self.down2 = nn.Conv2d(4 * middle, deep, 1)
        self.latents = nn.Conv2d(2 * channels, deep, config.cells, padding=config.cells // 2)
        self.place = nn.Embedding(PLACES, deep)
        self.deep_blocks = _blocks(config.blocks[0], deep, text)
        self.up2 = nn.Conv2d(deep, 4 * middle, 1)
        self.middle_back_blocks = _blocks(config.blocks[1], middle, text)
        self.up1 = nn.Conv2d(middle, 4 * fine, 1)
        self.fine_back_blocks = _blocks(config.fine_blocks, fine, text)
        # To a pixel: logits of all answers, widths of all but the camera's, its own colours.
        own = config.answers
        self.out = nn.Conv2d(fine, 4 * ((2 + own) + (1 + own) + 3 * own), 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)
        if config.forms:
            self.pose = _PoseHead(deep)
            self.kinds = nn.Linear(text, config.forms + 1)
            # To the logit that a text does more than to colour a thing.
            self.anew = nn.Sequential(nn.Linear(text, 48), nn.SiLU(), nn.Linear(48, 1))
            self.forms = Forms(config)
            self.form_head = _FormHead(fine, self.out.out_channels + 4 * 2 * BODIES)
            if config.places:
                self.places = Places()
            if config.lights:
                self.lights = Lights(words, config.lights, config.forms)

    def read(self, embedded: Tensor) -> Tensor:
        """Token embeddings ``[N, L, text_dim]`` (zeros beyond the text) to what :meth:`forward`
        takes; once for an instruction."""
        return self.text(heard(embedded, self.queries, self.keys, self.values))

    def named(self, embedded: Tensor) -> Tensor | None:
        """Which colour one text ``[1, L, text_dim]`` wants a thing to have: logits ``[lights]``;
        once for an instruction. None where no colours are known by name."""
        return self.lights.reader(embedded)[0] if self.config.lights else None

    def heeded(self, text: Tensor) -> tuple[float, float]:
        """How much the outlines of what a text, of :meth:`read`, puts in a thing's place are to be
        heeded, and of the hand that it takes a thing from: 0..1. One text."""
        if not self.config.forms:
            return 0.0, 0.0
        anew = self.anew(text).item()
        more = min(max((anew - SAME) / (OTHER - SAME), 0.0), 1.0)
        gone = bool(self.kinds(text).argmax() == self.config.forms)
        return more * (not gone), more * gone

    def forward(
        self,
        source: Tensor,
        made: Tensor,
        mask: Tensor,
        latents: Tensor,
        place: Tensor,
        text: Tensor,
        pose: Tensor | None = None,
        kinds: Tensor | None = None,
        whole: Whole | None = None,
        likely: Tensor | None = None,
    ) -> Answers:
        """Weigh answers to each pixel.

        source, made: float32 ``[N, 3, H, W]`` in 0..1; mask: ``[N, 1, H, W]``, where the decoder
        sees an edit; latents: edited and source ``[N, 2C, H/8, W/8]``; place: of each picture in
        its latent frame ``[N]``; text: of :meth:`read`; pose: where the bodies are, ``[N, POSE]``
        float32, instead of where the network takes them to be; kinds: likewise, ``[N, forms + 1]``;
        whole: what the squares are of, to look again at where bodies are whose outlines are heeded;
        likely: of :meth:`named`, to paint a thing.
        """
        x = torch.cat([2 * source - 1, 2 * made - 1, mask], 1)
        x = x.to(self.inside.weight)  # the answers below keep the camera's colours exactly
        pixels = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        x = skip1 = _through(self.fine_blocks, self.inside(pixels), text)
        x = skip2 = _through(self.middle_blocks, self.down1(F.pixel_unshuffle(x, 2)), text)
        x = self.down2(F.pixel_unshuffle(x, 2)) + self.latents(latents)
        x = _through(self.deep_blocks, x + self.place(place)[:, :, None, None], text)
        heed = None if self.training or len(text) > 1 else self.heeded(text)
        told = None
        if self.config.forms:
            told, heed = self._place(x, heed, whole)
        pose = told if pose is None else pose
        kinds, forms, seen = self._look(text, mask, pose, kinds)
        x = skip2 + F.pixel_shuffle(self.up2(x), 2)
        x = _through(self.middle_back_blocks, x, text)
        x = skip1 + F.pixel_shuffle(self.up1(x), 2)
        x = _through(self.fine_back_blocks, x, text)
        said = self.out(F.silu(x))
        bodies = outlines = None
        if seen is not None:
            more = self.form_head(seen.to(x), x, pixels)
            own = said.shape[1]
            said = torch.cat([said + more[:, :own], more[:, own:]], 1)
            with torch.no_grad(), torch.autocast(source.device.type, enabled=False):
                bodies = relit(seen, source, made, mask), outside(seen)
            if heed is not None:
                outlines = Outlines(seen, *heed)
                # Beside a new thing little of the hand comes to be seen.
                where = mask if heed[1] else torch.zeros_like(mask)
                outlines.hand_closely = self.forms.hand_closely(pose, seen, where)
                if heed[0]:
                    outlines.thing_closely = self.forms.thing_closely(pose, forms, seen)
                    if likely is not None and whole is not None:
                        kind = int(forms[0].argmax())
                        before = whole.before.light
                        outlines.paint = self.lights(whole.pictures, likely, kind, before)
        colors, logits, widths = self._mixture(
            F.pixel_shuffle(said.float(), 2), source, made, bodies
        )
        return Answers(colors, logits, widths, told, kinds, outlines)

    def _place(
        self, x: Tensor, heed: tuple[float, float] | None, whole: Whole | None
    ) -> tuple[Tensor, tuple[float, float] | None]:
        """Where it takes the bodies to be, looked at again where their outlines are heeded; and how
        much they are to be, since it may not be sure."""
        pose = self.pose(x)
        if not self.config.places or whole is None or heed is None or not any(heed):
            return pose, heed
        corner, pictures = whole.corner, whole.pictures
        with torch.autocast(x.device.type, enabled=False):
            last = whole.before.thing, whole.before.hand
            pose, sure = self.places(pose + corner, pictures, heed[0] > 0, True, last)
        return pose - corner, (heed[0] * sure[0], heed[1] * sure[1])

    def _look(
        self, text: Tensor, mask: Tensor, pose: Tensor | None, kinds: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of what form the text says that the thing is; of what form it is taken to be, that is
        known or told; and what is seen of the bodies of that form."""
        if not self.config.forms:
            return None, None, None
        told = self.kinds(text).float()
        # What is drawn does not teach where things are and of what form: that is known.
        if kinds is None:
            kinds = self._told_kind(told.detach().softmax(-1), pose.detach(), mask)
        rows, columns = mask.shape[2:]
        return told, kinds, self.forms(pose.detach(), kinds, (rows // 2, columns // 2), 2)

    def _told_kind(self, kinds: Tensor, pose: Tensor, mask: Tensor) -> Tensor:
        """How likely each form is ``[1 or N, forms + 1]``. Of those that one text for all pictures
        leaves open it is the one whose outline is most like what is edited ``[N, 1, H, W]``; but
        none, where none is likeliest."""
        sure = kinds.amax() > SURE_OF_KIND or kinds[0].argmax() == self.config.forms
        if self.training or len(kinds) > 1 or sure:
            return kinds
        likely = (kinds[0, :-1] > OPEN).nonzero().flatten().tolist()
        edited = F.avg_pool2d(mask, CELL // 2)[:, 0] > 0.5
        alike, forms = [], torch.eye(kinds.shape[1], device=kinds.device)
        for kind in likely:
            seen = self.forms(pose, forms[None, kind], tuple(edited.shape[1:]), CELL // 2)
            inside = seen[:, 0] > 0
            alike.append((inside & edited).sum() / (inside | edited).sum().clamp(min=1))
        best = likely[int(torch.stack(alike).argmax())]
        return forms[None, best]

    def _mixture(
        self, x: Tensor, source: Tensor, made: Tensor, bodies: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, ...]:
        own = self.config.answers
        logits, widths, change, of_bodies = x.split(
            [2 + own, 1 + own, 3 * own, x.shape[1] - 3 - 5 * own], 1
        )
        # Begins by believing the camera and the decoder; its own colours begin as the decoder's.
        colors = made[:, None] + change.unflatten(1, (own, 3))
        colors = torch.cat([source[:, None], made[:, None], colors], 1)
        if bodies is not None:
            colors = torch.cat([colors, bodies[0]], 1)
            logits = torch.cat([logits, of_bodies[:, :BODIES] - UNHEARD * bodies[1]], 1)
            widths = torch.cat([widths, of_bodies[:, BODIES:]], 1)
        # A width of 0.05, where the network says nothing.
        widths = (widths - 3.0).exp().clamp(NARROWEST, WIDEST)
        sure = torch.full_like(widths[:, :1], SURE)
        return colors, logits, torch.cat([sure, widths], 1)
