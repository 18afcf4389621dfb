# SPDX-License-Identifier: Apache-2.0
"""What of the CUDA parts a machine without a GPU can tell: the errors, names and shapes."""

from types import SimpleNamespace

import pytest
import torch
from runtime_support import SIZE, small_model

from egoedit_ros.errors import UserError
from egoedit_ros.runtime import cuda, onnx_export, tensorrt_backend
from egoedit_ros.stream.session import open_session

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
@pytest.mark.parametrize("ask", [cuda.driver, cuda.Context, tensorrt_backend.tensorrt])
def test_without_a_gpu_it_says_so(ask):
    with pytest.raises(UserError, match="no CUDA device"):
        ask()


@without_gpu
@pytest.mark.parametrize("runtime", ["graphs", "tensorrt"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_cuda_runtimes_are_never_silently_replaced(runtime, device):
    with pytest.raises(UserError, match="CUDA"):
        open_session("edge", device, runtime=runtime)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, ask in (("pycuda", cuda.driver), ("tensorrt", tensorrt_backend.tensorrt)):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(UserError, match="is missing: pip install"):
            ask()


def test_engines_are_named_by_gpu_version_precision_and_file():
    terms = ["decoder", "ab" * 32, "NVIDIA H100 80GB", "9.0", "10.9.0", "bf16"]
    name = tensorrt_backend.engine_name(*terms)
    for index, other in enumerate(["encoder", "cd" * 32, "NVIDIA B200", "10.0", "11.0", "fp16"]):
        changed = tensorrt_backend.engine_name(*terms[:index], other, *terms[index + 1 :])
        assert changed != name
    assert "/" not in name and " " not in name


def test_profiles_cover_an_empty_and_a_full_past(tmp_path):
    manifest = onnx_export.export(small_model(), tmp_path, SIZE, 3)
    profiles = tensorrt_backend.open_axes(manifest)
    tokens = 3 * 12
    assert [s[3] for s in profiles["denoise_step"]["past_keys"]] == [0, 2 * tokens, 2 * tokens]
    assert [s[0] for s in profiles["encoder"]["frames"]] == [1, 3, 3]
    assert set(profiles["denoise_step"]) == {"past_keys", "past_values"}


def test_a_pinned_ring_goes_round():
    class Fake:
        push = pop = staticmethod(lambda: None)

        class cuda:
            pagelocked_empty = staticmethod(__import__("numpy").empty)

    ring = cuda.PinnedRing(Fake, (4, 2, 2, 3), depth=2)
    first, second, third = ring.take(1), ring.take(4), ring.take(4)
    assert first.shape[0] == 1 and first.data_ptr() == third.data_ptr() != second.data_ptr()


def test_a_tensorrt_that_takes_no_precision_is_told():
    asked = []
    config = SimpleNamespace(set_flag=asked.append, clear_flag=lambda f: asked.append(f"no {f}"))
    ten = SimpleNamespace(
        __version__="10.9.0", BuilderFlag=SimpleNamespace(TF32="tf32", FP16="fp16", BF16="bf16")
    )
    for precision in ("fp32", "fp16", "bf16"):
        tensorrt_backend.set_precision(ten, config, precision)
    assert asked == ["no tf32", "fp16", "bf16"]
    eleven = SimpleNamespace(__version__="11.0.0", BuilderFlag=SimpleNamespace(TF32="tf32"))
    with pytest.raises(UserError, match="TensorRT 11.0.0 .* 'tensorrt>=10,<11'"):
        tensorrt_backend.set_precision(eleven, config, "bf16")
