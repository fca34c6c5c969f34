"""An engine that grew or slowed down is told of, and stopped only where that was asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verdict_files import costs, example

from deploy import gate_speed
from deploy.errors import DeployError
from deploy.files import sha256
from deploy.gate import evaluate
from deploy.gate_costs import cost_checks
from deploy.gate_speed import ratios
from deploy.policies import Terms
from deploy.verdicts import Verdicts


def found(here: Any, there: Any, **more: Any) -> dict[str, str]:
    return {check.name.split()[0]: check.status for check in cost_checks(here, there, **more)}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "PASS"),
        ({"compressed_bytes": 21_000}, "PASS"),  # five per cent exactly
        ({"compressed_bytes": 21_001}, "WARN"),
        ({"compressed_bytes": 1, "bytes": 900_000}, "PASS"),  # the download counts
        ({"compressed_bytes": None, "bytes": 105_000}, "PASS"),
        ({"compressed_bytes": None, "bytes": 105_001}, "WARN"),
    ],
)
def test_size(change: dict[str, Any], status: str) -> None:
    assert found(costs(**change), costs())["size"] == status


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"p50_ms": 0.087}, "PASS"),
        ({"p50_ms": 0.089}, "WARN"),
        ({"p50_ms": 0.8, "float_p50_ms": 1.0}, "PASS"),  # a slower machine
        ({"p50_ms": 0.08, "float_p50_ms": 0.05}, "WARN"),
    ],
)
def test_latency_is_relative_to_the_float_engine(change: dict[str, Any], status: str) -> None:
    assert found(costs(**change), costs())["latency"] == status


@pytest.mark.parametrize(
    ("rounds", "status"),
    [
        ([1.2, 1.15, 1.11], "WARN"),
        ([1.2, 1.15, 0.99], "PASS"),  # one round says otherwise
        ([1.05, 1.3, 1.05], "PASS"),
        ([0.5, 0.5, 0.5], "PASS"),
    ],
)
def test_side_by_side_decides_in_place_of_what_was_recorded(
    rounds: list[float], status: str
) -> None:
    slow, fast = costs(p50_ms=8.0), costs()
    assert found(slow, fast, ratios=rounds)["latency"] == status
    assert found(None, None, ratios=rounds) == {"latency": status}


def test_what_was_not_measured_is_not_mentioned_unless_it_is_hard() -> None:
    assert found(None, costs()) == found(costs(), None) == {}
    assert found(costs(p50_ms=None), costs()) == {"size": "PASS"}
    assert found(costs(), costs(float_p50_ms=None)) == {"size": "PASS"}
    assert found(None, costs(), hard=["latency"]) == {"latency": "INCONCLUSIVE"}


def test_only_hard_costs_change_the_verdict() -> None:
    baseline = example(measured=costs())
    large = example(sha="b", measured=costs(compressed_bytes=90_000, p50_ms=0.5))
    soft = evaluate(large, baseline)
    assert soft.status == "PASS"
    assert sum(line.startswith("warning: ") for line in soft.lines) == 2
    assert soft.to_dict()["measured"]["candidate"] == large.measured
    statuses = {
        hard: [check.status for check in evaluate(large, baseline, terms=Terms(hard=hard)).checks]
        for hard in (("size",), ("latency",))
    }
    assert statuses == {
        ("size",): ["PASS", "FAIL", "WARN"],
        ("latency",): ["PASS", "WARN", "FAIL"],
    }
    assert evaluate(example(), example(), terms=Terms(hard=("size",))).status == "INCONCLUSIVE"


def test_only_the_baselines_engine_is_timed(tmp_path: Path) -> None:
    images = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(DeployError, match="no such file") as refusal:
        ratios(tmp_path / "new.onnx", tmp_path / "old.onnx", example(), images)
    assert refusal.value.exit_code == 66
    (tmp_path / "old.onnx").write_bytes(b"another")
    with pytest.raises(DeployError, match="the baseline is about aaaaaaaaaaaa") as refusal:
        ratios(tmp_path / "new.onnx", tmp_path / "old.onnx", example(), images)
    assert refusal.value.exit_code == 12


def test_the_ratio_of_a_round_is_that_of_its_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.onnx"
    old.write_bytes(b"engine")
    artefact = {"file": "old.onnx", "sha256": sha256(old), "precision": "int8"}
    baseline = Verdicts(example().protocol, artefact, example().correct)
    medians = iter([(3.0, 2.0), (1.0, 2.0), (2.0, 2.0), (4.0, 2.0), (5.0, 2.0)])

    class Timed:
        def __init__(self, p50_ms: float) -> None:
            self.p50_ms = p50_ms

    def timed(models: dict[str, Path], images: Any, **settings: Any) -> dict[str, Timed]:
        assert models == {"new": tmp_path / "new.onnx", "old": old}
        new, former = next(medians)
        return {"new": Timed(new), "old": Timed(former)}

    monkeypatch.setattr(gate_speed, "interleaved", timed)
    monkeypatch.setattr(gate_speed, "load", lambda path: path)
    images = np.zeros((1, 1, 8, 8), np.float32)
    assert ratios(tmp_path / "new.onnx", old, baseline, images) == [1.5, 0.5, 1.0, 2.0, 2.5]
