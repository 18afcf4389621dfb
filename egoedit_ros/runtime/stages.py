# SPDX-License-Identifier: Apache-2.0
"""A chunk's way through an :class:`~egoedit_ros.stream.edit_session.EditSession` as stages.

ingest, encode, denoise, decode, emit. Only denoise reads and writes the stream's past, and each
stage sees the chunks in order, so encoding chunk k+1 and decoding k-1 may go on while k is
denoised: the result is the same as one chunk at a time, bit for bit on the same thread counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from egoedit_ros.runtime.executor import Executor, Lane, Stage, Ticket

if TYPE_CHECKING:
    from egoedit_ros.stream.edit_session import ChunkWork, EditSession

STAGES = ("ingest", "encode", "denoise", "decode", "emit")
# Which neighbouring stages share a lane: all in one, or the autoencoder beside the transformer.
ONE_LANE = (STAGES,)
THREE_LANES = (("ingest", "encode"), ("denoise",), ("decode", "emit"))


def session_stages(session: EditSession) -> dict[str, Stage]:
    """The stages of a session, by name."""
    return {name: Stage(name, getattr(session, name)) for name in STAGES}


class OverlappedStream:
    """A session whose chunks overlap. It owns the session until it is closed.

    make_lane: called once for each group of ``groups`` with its names. depth: chunks inside.
    """

    def __init__(
        self,
        session: EditSession,
        make_lane: Callable[[Sequence[str]], Lane],
        groups: Sequence[Sequence[str]] = THREE_LANES,
        depth: int = 3,
    ) -> None:
        if tuple(name for group in groups for name in group) != STAGES:
            raise ValueError(f"the groups must hold {', '.join(STAGES)} in this order")
        self.session = session
        stages = session_stages(session)
        plan = [(make_lane(group), [stages[name] for name in group]) for group in groups]
        self.executor = Executor(plan, depth)

    def submit(self, frames: np.ndarray, timeout: float | None = None) -> Ticket:
        """Hand in the next chunk, uint8 ``[session.frames_needed, h, w, 3]``.

        The ticket's result is a ChunkWork with ``picture`` and ``mask`` in numpy. It is edited by
        the instruction that is in force now: ``session.set_instruction`` may be called at any time
        between two calls. The frames must not change until the result is there.
        """
        self.executor.wait_for_room(timeout)  # a chunk that is refused takes no place
        return self.executor.submit(self.session.begin(frames))

    def run(self, chunks: Iterable[np.ndarray]) -> Iterator[ChunkWork]:
        """Edit chunks in order, overlapped."""
        yield from self.executor.map(map(self.session.begin, chunks))

    def reset(self) -> None:
        """Drop what is inside and begin a new stream."""
        self.executor.restart()
        self.session.reset()

    def close(self) -> None:
        self.executor.close()

    def __enter__(self) -> OverlappedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
