"""Promise: beside an engine stands what it is, and in which types its layers really compute."""

import hashlib
import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from exported_net import CLASSES, SHAPE, Exported
from tensorrt_builder import TensorRT

from deploy.runtimes.device_memory import Gpu
from deploy.sealed import unseal
from export import graph
from export.encodings import uint8_head
from export.engine_card import BuildOptions, layer_precisions, precision
from export.to_tensorrt import Built, build_engine

pytest_plugins = ["export_fixtures"]

ORIN = Gpu(0, "Orin", "8.7")


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    fake = TensorRT("11.4.0.106", 0)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def test_card_says_what_the_engine_is(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    out, model = tmp_path / "model.plan", graph.load(exported.int8)
    graph.set_metadata(model, {"labels": "\n".join("abcdefghij")})
    graph.save(model, tmp_path / "model.onnx")
    options = BuildOptions(32, optimal_batch=4)
    built = build_engine(tmp_path / "model.onnx", out, SHAPE, options, ORIN)
    assert isinstance(built, Built)
    assert unseal(built.card.read_bytes()) == {
        "schema": 2,
        "sha256": hashlib.sha256(b"engine").hexdigest(),
        "onnx_sha256": hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest(),
        "tensorrt": tensorrt.__version__,
        "gpu": "Orin",
        "compute_capability": "8.7",
        "platform": f"{platform.system()}/{platform.machine()}".lower(),
        "batch": {"min": 1, "optimal": 4, "max": 32},
        "version_compatible": False,
        "hardware_compatible": False,
        "input": {"name": "images", "shape": [-1, *SHAPE], "type": "float32"},
        "output": {"name": "logits", "shape": [-1, CLASSES], "type": "float32"},
        "classes": CLASSES,
        "precision": "int8",
        "layers": {"int8": 1, "unknown": 1},
        "labels": [*"abcdefghij"],
    }
    first = built.card.read_bytes()
    build_engine(tmp_path / "model.onnx", out, SHAPE, options, ORIN)
    assert built.card.read_bytes() == first


def test_card_tells_forms_apart(exported: Exported, tensorrt: TensorRT, tmp_path: Path):
    camera = tmp_path / "camera.onnx"
    graph.save(uint8_head(graph.load(exported.int8)), camera)
    frame = (*SHAPE[1:], SHAPE[0])
    build_engine(camera, tmp_path / "camera.plan", frame, BuildOptions(8), ORIN)
    card = json.loads((tmp_path / "camera.plan.json").read_text())
    assert card["input"] == {"name": "images", "shape": [-1, *frame], "type": "uint8"}
    assert card["labels"] == []
    model = graph.load(exported.float_onnx)
    assert precision(model) == "fp32"
    halves = {name: value.astype(np.float16) for name, value in graph.constants(model).items()}
    graph.put_constants(model, halves)
    assert precision(model) == "fp16"


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ({"Weights": {"Type": "Int8"}, "Inputs": [{"Format/Datatype": "Half"}]}, "int8"),
        ({"Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]}, "fp16"),
        ({"Inputs": [{"Format/Datatype": "Thirty-two wide Int8 format."}]}, "int8"),
        ({"Inputs": [{"Name": "half", "Format": "Linear", "Datatype": "Float"}]}, "fp32"),
        ({"Inputs": [], "Outputs": [{"Format/Datatype": "BFloat16"}]}, "bf16"),
        ({"Inputs": {"Format/Datatype": "FP8"}}, "fp8"),
        ({"Name": "int8 conv", "LayerType": "Float"}, "unknown"),
        ({"Weights": None, "Inputs": ["x"], "Outputs": 3}, "unknown"),
        ("conv1 + relu1", "unknown"),
        (None, "unknown"),
    ],
)
def test_layer_is_counted_by_what_it_computes_in(layer: object, kind: str):
    for inspection in ({"Layers": [layer, layer]}, [layer, layer]):
        assert layer_precisions(json.dumps(inspection)) == {kind: 2}


@pytest.mark.parametrize("inspection", ["", "no JSON", "3", '{"Layers": 3}', "{}", "null"])
def test_inspection_that_says_nothing_is_no_error(inspection: str):
    assert layer_precisions(inspection) == {}
