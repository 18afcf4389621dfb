# SPDX-License-Identifier: Apache-2.0
"""Which text each chunk is edited by: a hard switch, or a blend from one to the next."""

from __future__ import annotations

from egoedit_ros.model.inference import Blend, Conditioning
from egoedit_ros.model.transformer import TextContext

MAX_TEXTS = 4  # at once in a blend; of more, the faintest is dropped


class TextSwitch:
    """Hands every chunk its conditioning, in order.

    blend_chunks: chunks that are between the old instruction and the new one; the k-th of N has
    the new one with weight k / (N + 1), and the one after them has it alone. 0: none.
    """

    def __init__(self, blend_chunks: int = 0) -> None:
        self.blend_chunks = blend_chunks
        self._target: TextContext | None = None
        self._from: tuple[tuple[TextContext, float], ...] = ()
        self._step = 0  # chunks blended so far; past blend_chunks: no blend goes on

    def switch(self, context: TextContext) -> None:
        """Go to ``context``, from what the last chunk was edited by."""
        if self.blend_chunks and self._target is not None:
            self._from = self._parts()
            self._step = 0
        self._target = context

    def next(self) -> Conditioning | None:
        """The next chunk's conditioning; None before the first instruction."""
        if self._from:
            self._step += 1
            if self._step <= self.blend_chunks:
                return Blend(self._parts())
        self.finish()
        return self._target

    def finish(self) -> None:
        """End a blend: the next chunk has the newest instruction alone."""
        self._from = ()

    def _parts(self) -> tuple[tuple[TextContext, float], ...]:
        """The texts of the chunk last handed out and their weights, the newest last."""
        if not self._from:
            return ((self._target, 1.0),)
        new = self._step / (self.blend_chunks + 1)
        old = [(text, weight * (1 - new)) for text, weight in self._from]
        parts = [(t, w) for t, w in (*old, (self._target, new)) if w > 0]
        while len(parts) > MAX_TEXTS:
            parts.remove(min(parts, key=lambda part: part[1]))
        total = sum(weight for _, weight in parts)
        return tuple((text, weight / total) for text, weight in parts)
