"""Promise: memory and load time are those of a process that does nothing but run this file."""

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_net import Exported
from onnx import TensorProto, helper, numpy_helper

from deploy import footprint as module
from deploy.errors import DeployError
from deploy.footprint import footprint

pytest_plugins = ["export_fixtures"]


def test_memory_is_the_file_s_own_and_not_that_of_who_asks(exported: Exported) -> None:
    mine = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert mine > 200e6, "torch is loaded here, and the promise is about just such a process"
    found = footprint(exported.x86)
    assert 20e6 < found.peak_memory < 0.7 * mine
    assert found.load_ms > 0 and found.first_ms > 0


def test_memory_grows_with_the_weights(tmp_path: Path) -> None:
    small, large = (
        footprint(linear(tmp_path / f"{width}.onnx", width)).peak_memory for width in (8, 10_000)
    )
    # Ten thousand features of 16 x 16 pixels: ten megabytes of weights.
    assert large - small > 10e6


def linear(path: Path, width: int) -> Path:
    """images (batch, 1, 16, 16) -> width features -> ten logits."""
    rng = np.random.default_rng(0)
    weights = [rng.random(size, dtype=np.float32) for size in ((256, width), (width, 10))]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["features"]),
        helper.make_node("MatMul", ["features", "second"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 16, 16]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
    ]
    stored = [
        numpy_helper.from_array(values, name)
        for values, name in zip(weights, ("first", "second"), strict=True)
    ]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(body, opset_imports=opset, ir_version=10), path)
    return path


def test_another_runtime_has_a_footprint_of_its_own(exported: Exported) -> None:
    assert footprint(exported.int8, "openvino").peak_memory > footprint(exported.int8).peak_memory


def test_nothing_is_imported_from_the_current_folder(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert footprint(exported.x86).peak_memory > 0


@pytest.mark.parametrize(
    ("file", "runtime", "code", "says"),
    [
        ("none.onnx", None, 66, "none.onnx: no such file"),
        ("garbage.onnx", None, 65, "garbage.onnx: not an ONNX file"),
        ("garbage.onnx", "tensorrt", 65, "tensorrt runs .plan files"),
        ("sound.onnx", "ort-cuda", 69, "asked for CUDAExecutionProvider"),
    ],
)
def test_a_refusal_is_that_of_opening_the_file(
    tmp_path: Path, file: str, runtime: str | None, code: int, says: str
) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 9)
    linear(tmp_path / "sound.onnx", 8)
    with pytest.raises(DeployError) as caught:
        footprint(tmp_path / file, runtime)
    assert caught.value.exit_code == code
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_runtime_that_dies_is_told(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(dying))
    with pytest.raises(DeployError, match=r"x86\.onnx: its process ended -9 \(out of luck\)"):
        footprint(exported.x86)
