"""Promise: an engine finds its memory through the smallest package there is; both copy alike."""

import contextlib
import importlib
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_cuda import HostCuda
from tensorrt_runtime import LARGEST, SHAPE, TensorRT, logits_of, make_images, write_engine

from deploy.errors import DeployError
from deploy.runtimes import torch_memory
from deploy.runtimes.device_memory import CudaMemory, Gpu, open_device
from deploy.runtimes.tensorrt import TensorRtModel

INSTALL = r"pip install 'tensorrt>=10\.3' cuda-python"


def refusal(match: str):
    return pytest.raises(DeployError, match=match, check=lambda error: error.exit_code == 69)


def test_small_package_is_taken_where_both_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", HostCuda())
    memory = open_device()
    assert isinstance(memory, CudaMemory)
    assert memory.gpu == Gpu(0, "Test GPU", "8.7")


def test_torch_is_taken_where_it_is_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refusal(f"torch .* finds none; .*{INSTALL}"):
        open_device()
    monkeypatch.setitem(sys.modules, "deploy.runtimes.torch_memory", None)
    with refusal(f"neither cuda-python nor torch can be imported .*{INSTALL}"):
        open_device()


def test_torch_copies_what_an_engine_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Torch's own copies, with host tensors in the place of those on the GPU."""
    properties = types.SimpleNamespace(name="Torch GPU", major=8, minor=7)
    stream = types.SimpleNamespace(cuda_stream=5, synchronize=lambda: None)
    there: Any = torch.cuda
    monkeypatch.setattr(there, "is_available", lambda: True)
    monkeypatch.setattr(there, "current_device", lambda: 1)
    monkeypatch.setattr(there, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(there, "Stream", lambda index: stream)
    monkeypatch.setattr(there, "set_device", lambda index: None)
    monkeypatch.setattr(there, "stream", contextlib.nullcontext)
    empty = torch.empty

    def on_host(size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        assert device == "cuda:1"
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch_memory.torch, "empty", on_host)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    tensorrt = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    model = TensorRtModel(write_engine(tmp_path))
    assert model.info.device == "cuda:1 Torch GPU"
    images = make_images(LARGEST + 1)
    images.flags.writeable = False
    np.testing.assert_array_equal(model.predict(images), logits_of(images))
    assert tensorrt.streams == {5}


def test_host_memory_offers_what_cuda_python_does():
    """The package comes with torch on Linux and can be asked for its names without a GPU."""
    real: Any = pytest.importorskip("cuda.bindings.runtime")
    assert real.cudaError_t.cudaSuccess == 0
    assert real.cudaStreamNonBlocking == HostCuda.cudaStreamNonBlocking
    for kind in HostCuda.cudaMemcpyKind:
        assert getattr(real.cudaMemcpyKind, kind.name) == kind
    for name, function in inspect.getmembers(HostCuda, inspect.isfunction):
        if name.startswith("cuda"):
            call = getattr(real, name).__doc__.splitlines()[0]
            count = len([part for part in call.partition("(")[2].rstrip(")").split(",") if part])
            assert count == len(inspect.signature(function).parameters) - 1, call


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cuda", "torch"])
def test_memory_of_a_real_gpu_keeps_what_is_put_there(kind: str):
    if kind == "cuda":
        memory: Any = CudaMemory(importlib.import_module("cuda.bindings.runtime"))
    else:
        memory = torch_memory.TorchMemory()
    assert memory.gpu.compute_capability == ".".join(map(str, torch.cuda.get_device_capability()))
    assert memory.gpu.name == torch.cuda.get_device_name()
    images, back = make_images(100), np.zeros((100, *SHAPE), np.float32)
    memory.activate()
    address = memory.allocate(images.nbytes)
    memory.copy_in(address, images)
    memory.copy_out(address, back)
    memory.synchronise()
    np.testing.assert_array_equal(back, images)
    assert memory.stream != 0
