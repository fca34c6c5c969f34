"""The peak of a device is the best of what was seen, and finding it takes seconds."""

import pytest
import torch

from advprune import peak
from advprune.peak import Peak


def test_a_peak_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SECONDS", 0.01)
    monkeypatch.setattr(peak, "_CPU_SIDES", (64, 128))
    monkeypatch.setattr(peak, "_COPIED", 2**16)
    found = peak.measure("cpu")
    assert all(1e6 < rate < 1e16 for rate in vars(found).values())


def test_the_best_size_counts_and_a_slow_device_is_not_asked_for_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probe(*seconds: float) -> float:
        times = iter(seconds)
        monkeypatch.setattr(peak, "_fastest", lambda run, device: next(times))
        return peak._product("cpu", torch.float32)

    monkeypatch.setattr(peak, "_CPU_SIDES", (10, 20, 40))
    assert probe(1e-4, 4e-4, 16e-3) == 16000 / 4e-4
    assert probe(0.5) == 2000 / 0.5


def test_operations_take_the_time_of_their_type() -> None:
    found = Peak(fp32=100.0, bf16=400.0, copy=1.0)
    assert found.seconds({"float32": 200, "bfloat16": 400, "float16": 800}) == 2.0 + 1.0 + 2.0
    assert found.seconds({}) == 0.0
