# SPDX-License-Identifier: Apache-2.0
"""``--runtime compile``: one graph for all blocks, and the frames that there are without it.

The compiler here is torch's ``aot_eager``, which traces as the real one does and needs no C++.
"""

import numpy as np
import pytest
import torch
from runtime_support import SIZE, TEXT, pictures, small_model

from egoedit_ros.errors import UserError
from egoedit_ros.runtime import compiled
from egoedit_ros.stream.edit_session import EditSession


@pytest.fixture
def quick_compiler(monkeypatch):
    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def _stream(session, count):
    session.set_instruction(TEXT, 3)
    return [session.run(chunk).frames for chunk in pictures(session, count)]


@pytest.mark.parametrize("chunk_latents", [1, 2])
def test_one_graph_serves_all_blocks_and_steps(quick_compiler, capfd, chunk_latents):
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    model = small_model(nfe=2)
    session = compiled.PieceSession(model, compiled.compiled_backend, SIZE, chunk_latents)
    assert "compiling one block" in capfd.readouterr().err
    got = _stream(session, 6)
    assert counters["unique_graphs"] == 1
    wanted = _stream(EditSession(model, SIZE, chunk_latents), 6)
    for a, b in zip(got, wanted, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_no_compiler_is_said_in_one_line(monkeypatch):
    def broken(function, **options):
        def call(*inputs):
            raise RuntimeError("InvalidCxxCompiler: no g++\nlong trace")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="no g.*--runtime torch, or install a C") as caught:
        compiled.PieceSession(small_model(), compiled.compiled_backend, SIZE)
    assert "\n" not in str(caught.value)
