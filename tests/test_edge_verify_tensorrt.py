"""Promise: on a GPU the bundle is verified on an engine that was built there, for it and no other.

TensorRT is a strict stand-in that answers with the graph's own logits, and CUDA's driver is a
compiled one on host memory.
"""

import hashlib
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_bundle import Predict, contents, write_bundle
from exported_net import CLASSES, SHAPE, Exported, runner
from tensorrt_builder import DataType
from tensorrt_device import TensorRT, compile_driver, use_driver
from tensorrt_runtime import LARGEST

from deploy import edge_verify
from deploy.sealed import seal, unseal

pytest_plugins = ["export_fixtures"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def shipped(varied: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("shipped") / "net", varied)


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "net"))


@pytest.fixture
def edge(bundle: Path) -> Path:
    return bundle.with_name("net.edge")


@pytest.fixture(scope="module")
def answer(varied: Exported) -> Predict:
    return runner(varied.int8, optimise=True)


@pytest.fixture
def tensorrt(driver: Path, answer: Predict, monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    fake = TensorRT()
    fake.answer = answer
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setitem(sys.modules, "build_engine", types.ModuleType("not yet imported"))
    use_driver(driver, monkeypatch)
    return fake


@pytest.fixture
def told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Verifies the bundle, holds the exit code, and gives what was said."""

    def verify(code: int, *arguments: str) -> str:
        assert edge_verify.main(["--bundle", str(bundle), "--calls", "3", *arguments]) == code
        captured = capsys.readouterr()
        return captured.err or captured.out

    return verify


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change_card(edge: Path, **changes: Any) -> None:
    card = edge / "model.plan.json"
    card.write_bytes(seal(unseal(card.read_bytes()) | changes))


def test_engine_is_built_and_verified(
    bundle: Path, edge: Path, tensorrt: TensorRT, told: Callable[..., str]
):
    before = {name: path.read_bytes() for name, path in contents(bundle).items()}
    said = told(0)
    assert "net, release 3, on Orin, TensorRT 10.3.0\n" in said and "fp32 " not in said
    assert {name: path.read_bytes() for name, path in contents(bundle).items()} == before
    record, verdicts = read(edge / "edge.json"), read(edge / "edge.int8.json")
    assert (record["runtime"], record["where"]) == ("tensorrt", "Orin, TensorRT 10.3.0")
    assert record["why"].startswith("built its engine now")
    assert set(record["engines"]) == {"int8"}
    assert record["engines"]["int8"]["agreement"] == {"clean": 1, "replay": 1}
    digest = hashlib.sha256(b"engine").hexdigest()
    artefact = {"file": "model.plan", "sha256": digest, "precision": "int8"}
    assert verdicts["artefact"] == artefact
    assert verdicts["measured"]["float_p50_ms"] is None
    assert verdicts["measured"]["bytes"] == len(b"engine")
    # Images come in batches that the engine takes, on one stream that is not the default one.
    assert max(tensorrt.batches) == LARGEST and tensorrt.streams and 0 not in tensorrt.streams


def test_tensorrt_is_taken_where_it_is_unless_another_is_asked_for(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str]
):
    told(0, "--runtime", "ort")
    assert read(edge / "edge.json")["runtime"] == "onnxruntime" and not tensorrt.opened
    told(0, "--runtime", "tensorrt")
    assert read(edge / "edge.json")["runtime"] == "tensorrt"


def test_an_engine_that_fits_is_built_once(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str]
):
    told(0)
    opened = len(tensorrt.opened)
    tensorrt.building.calls.clear()
    told(0)
    assert read(edge / "edge.json")["why"] == "its engine was built here before"
    assert not tensorrt.building.calls and len(tensorrt.opened) == opened + 1


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 1},
        {"sha256": "0" * 64},
        {"onnx_sha256": "0" * 64},
        {"tensorrt": "10.3.1"},
        {"gpu": "Orin Nano"},
        {"compute_capability": "8.6"},
        {"platform": "linux/riscv64"},
        {"version_compatible": 1},
    ],
)
def test_an_engine_of_another_graph_or_device_is_never_opened(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str], change: dict[str, Any]
):
    told(0)
    (edge / "model.plan").write_bytes(b"foreign")
    digest = hashlib.sha256(b"foreign").hexdigest()
    change_card(edge, **({"sha256": digest} | change))
    told(0)
    assert {plan for plan, _ in tensorrt.opened} == {b"engine"}
    assert (edge / "model.plan").read_bytes() == b"engine"
    why = read(edge / "edge.json")["why"]
    assert why.startswith("built its engine now, as there was no fitting one (")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"schema": 1, "schema": 1}', "\xff"])
def test_an_engine_without_a_card_is_never_opened(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str], text: str | None
):
    edge.mkdir()
    (edge / "model.plan").write_bytes(b"foreign")
    if text is not None:
        (edge / "model.plan.json").write_text(text, "latin-1")
    told(0)
    assert {plan for plan, _ in tensorrt.opened} == {b"engine"}


def test_host_code_is_for_engines_that_bring_it(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str]
):
    told(0)
    assert tensorrt.opened.pop() == (b"engine", False)
    change_card(edge, version_compatible=True)
    told(0)
    assert tensorrt.opened[-1] == (b"engine", True)


def test_an_engine_that_would_write_past_its_buffers_is_refused(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str]
):
    whole = tensorrt.shapes
    for shapes in (
        {"images": (-1, *SHAPE), "logits": (-1, CLASSES + 1)},
        {"images": (-1, 3, 13, 12), "logits": (-1, CLASSES)},
        {"images": (-1, *SHAPE)},
    ):
        tensorrt.shapes = shapes
        assert "model.plan: has" in told(78)
    tensorrt.shapes, tensorrt.types["logits"] = whole, DataType.HALF
    assert "model.plan: has" in told(78)
    assert not tensorrt.batches and not (edge / "edge.json").exists()


def test_another_function_is_told(
    edge: Path, tensorrt: TensorRT, answer: Predict, told: Callable[..., str]
):
    tensorrt.answer = lambda images: -answer(images)
    said = told(10)
    assert "failure: model.plan: golden logits are off by" in said
    assert "below 98 %: it computes another function" in said
    assert not (edge / "edge.int8.json").exists()
    tensorrt.answer = lambda images: answer(images) * np.float32(np.nan)
    assert "model.plan: gave logits that are not finite" in told(65)


def test_what_tensorrt_does_not_do_is_told(tensorrt: TensorRT, told: Callable[..., str]):
    tensorrt.can_run = False
    assert "does not execute it (an illegal memory access)" in told(78)
    tensorrt.can_run, tensorrt.takes_batch = True, False
    assert "refuses a batch of (8, 3, 12, 12)" in told(78)
    tensorrt.building.can_parse = False
    assert told(0, "--runtime", "ort")  # it needs none of this
    tensorrt.can_open = False
    assert "does not open what it built (magic tag" in told(78)


@pytest.mark.parametrize("name", ["cuStreamCreate", "cuMemAlloc_v2"])
def test_what_cuda_does_not_do_is_told(
    tensorrt: TensorRT, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("CUDA_FAILS", name)
    assert f"gpu: {name} failed (out of memory)" in told(69)


def test_without_a_gpu_onnxruntime_runs_unless_tensorrt_was_asked_for(
    edge: Path, tensorrt: TensorRT, told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_FAILS", "cuInit")
    assert "why there: no TensorRT: gpu: cuInit failed (out of memory)" in told(0)
    assert read(edge / "edge.json")["runtime"] == "onnxruntime"
    assert "gpu: cuInit failed" in told(69, "--runtime", "tensorrt")
    monkeypatch.delenv("CUDA_FAILS")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "why there: no TensorRT: tensorrt cannot be imported" in told(0)
