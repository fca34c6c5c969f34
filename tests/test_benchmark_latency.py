"""Promise: the table of latencies says of each engine what was measured of that engine."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scripts import script

from advprune import models
from advprune.models import Architecture

pytestmark = pytest.mark.slow

TINY = Architecture("digits_resnet", 10, (1, 8, 8), (0.5,), (0.3,))


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("latency")


@pytest.fixture(scope="module")
def candidates(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("latency")
    return [bench.make(TINY, removed, folder) for removed in (0.0, 0.7)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_networks_are_cut_to_multiples_of_eight(bench: ModuleType, candidates: list) -> None:
    dense, small = candidates
    assert (dense.narrowest, dense.widest) == (32, 128)
    # 0.3 of 32, 64 and 128 channels are 9.6, 19.2 and 38.4.
    assert (small.narrowest, small.widest) == (8, 40)
    assert [bench.rounded(width) for width in (0.1, 11.9, 12.1, 38.4)] == [8, 8, 16, 40]
    net = models.build(TINY)
    assert dense.parameters == sum(p.numel() for p in net.parameters())
    for made in candidates:
        assert made.kernels["QLinearConv"] == 9 and made.kernels["QLinearAdd"] == 3
        assert not {"Conv", "QuantizeLinear"} & set(made.kernels)
    lines = [cells(line) for line in bench.networks_table(candidates).splitlines()]
    assert {len(line) for line in lines} == {7}
    assert [line[:2] for line in lines[2:]] == [["0 %", "32-128"], ["70 %", "8-40"]]
    for number, row in enumerate(lines[2:]):
        fp32, int8 = (float(cell.removesuffix(" MB")) for cell in row[4:6])
        assert fp32 == pytest.approx(candidates[number].fp32.stat().st_size / 1e6, abs=0.006)
        assert int8 == pytest.approx(candidates[number].x86.stat().st_size / 1e6, abs=0.006)


def test_every_engine_gives_the_logits_of_its_file(bench: ModuleType, candidates: list) -> None:
    images = np.random.default_rng(2).random((5, *TINY.shape), dtype=np.float32)
    found = dict(bench.engines(candidates, True))
    assert len(found) == 8
    for engine, model in found.items():
        assert model.info.precision in engine and model.info.shape == TINY.shape
        reference = found[engine.replace("OpenVINO", "ONNX Runtime")].predict(images)
        gap = np.abs(model.predict(images) - reference).max()
        assert gap <= (1e-4 if "fp32" in engine else 0.3) * np.abs(reference).max()
        np.testing.assert_allclose(model.predict(images[:1]), model.predict(images)[:1], atol=0.05)


def test_what_is_not_installed_says_so(
    bench: ModuleType, candidates: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "WARMUP_S", 0.0)
    found = bench.measure(dict(bench.engines(candidates, False)), rounds=2, calls=3)
    lines = [cells(line) for line in bench.timings_table(candidates, found).splitlines()]
    assert {len(line) for line in lines} == {8}
    rows = {tuple(line[:3]): line[3:] for line in lines[2:]}
    assert len(rows) == 8
    for (removed, precision, runtime), row in rows.items():
        if runtime == "OpenVINO":
            assert row == ["not installed", "", "", "", ""]
            continue
        timings = found[f"{removed} | {precision} | {runtime}"]
        assert len(timings.in_turn_ms) == len(timings.alone_ms) == len(timings.throughput) == 2
        assert all(re.fullmatch(r"[\d,.]+", row[column]) for column in (0, 2, 4))
        assert all(re.fullmatch(r"\*\*[\d.]+\*\* \([\d.]+-[\d.]+\)", row[c]) for c in (1, 3))
    assert rows["0 %", "fp32", "ONNX Runtime"][1] == "**1.0** (1.0-1.0)"


def test_a_gpu_is_timed_where_its_provider_is_there(
    bench: ModuleType, candidates: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(path: Path, runtime: str | None = None) -> str:
        asked.append((path, runtime))
        return f"{path.name} {runtime}"

    monkeypatch.setattr(bench, "load", load)
    monkeypatch.setattr(
        bench.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"]
    )
    assert bench.gpu_runtimes() == ["ONNX Runtime, CUDA"]
    found = dict(bench.engines(candidates[:1], False, list(bench.ON_GPU)))
    assert found["0 % | fp32 | ONNX Runtime, CUDA"] == "0.fp32.onnx ort-cuda"
    assert found["0 % | int8 | ONNX Runtime, TensorRT"] == "0.int8.onnx ort-tensorrt"
    times = bench.Timings([1.0], [1.0], [1.0])
    timed = {bench.DENSE: times, "0 % | fp32 | ONNX Runtime, CUDA": times}
    rows = bench.timings_table(candidates[:1], timed).splitlines()[2:]
    assert [cells(row)[2] for row in rows] == [
        "ONNX Runtime",
        "OpenVINO",
        "ONNX Runtime, CUDA",
        "ONNX Runtime",
        "OpenVINO",
    ]


def test_a_speed_up_is_of_times_of_the_same_round(bench: ModuleType, candidates: list) -> None:
    times = {
        bench.DENSE: bench.Timings([10.0, 20.0, 30.0], [8.0, 8.0, 8.0], [100.0, 100.0, 90.0]),
        bench.name(0.7, "int8", "ONNX Runtime"): bench.Timings(
            [1.0, 4.0, 1.0], [2.0, 1.0, 4.0], [2000.4, 1000.0, 3000.0]
        ),
    }
    lines = bench.timings_table(candidates, times).splitlines()
    assert lines[2] == (
        "| 0 % | fp32 | ONNX Runtime | 20.00 | **1.0** (1.0-1.0) | 8.00 | **1.0** (1.0-1.0) | 100 |"
    )
    assert lines[8] == (
        "| 70 % | int8 | ONNX Runtime "
        "| 1.00 | **10.0** (5.0-30.0) | 2.00 | **4.0** (2.0-8.0) | 2,000 |"
    )
