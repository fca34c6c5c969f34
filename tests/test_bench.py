"""Promise: a latency is that of measured calls, and a ratio is of calls that took turns."""

import lzma
import time
from pathlib import Path

import numpy as np
import pytest
from exported_net import SHAPE, Exported
from numpy.typing import NDArray

from deploy import bench
from deploy.bench import interleaved, latency, sizes
from deploy.errors import DeployError
from deploy.runtime import EdgeInfo, load

pytest_plugins = ["export_fixtures"]

IMAGES = np.random.default_rng(0).random((5, 1, 2, 2), dtype=np.float32)


class Clock:
    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, int]] = []


class Slow:
    """A model that takes a known time, on a clock that only its calls move."""

    def __init__(self, clock: Clock, name: str, overhead_ms: float, image_ms: float) -> None:
        shape = (1, 2, 2)
        self.info = EdgeInfo(
            "fake", "fp32", "cpu", ("fake",), "0", "float32 NCHW", shape, 3, version="1.2"
        )
        self.clock, self.name = clock, name
        self.overhead_ms, self.image_ms = overhead_ms, image_ms
        self.seen: list[NDArray[np.float32]] = []

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.clock.calls.append((self.name, len(images)))
        self.clock.now += int(1e6 * (self.overhead_ms + self.image_ms * len(images)))
        self.seen.append(images)
        return np.zeros((len(images), 3), np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench.time, "perf_counter_ns", lambda: clock.now)
    return clock


def test_times_are_those_of_the_clock(clock: Clock):
    model = Slow(clock, "a", overhead_ms=1, image_ms=0.5)
    found = latency(model, IMAGES, warmup_s=0, calls=20)
    assert found.samples_ms == (1.5,) * 20
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (1.5, 1.5, 1.5)
    assert found.throughput == pytest.approx(128 / 65 * 1e3)
    assert (found.batch, found.throughput_batch) == (1, 128)
    assert (found.runtime, found.precision, found.threads) == ("fake", "fp32", 1)
    assert (found.device, found.providers, found.version) == ("cpu", ("fake",), "1.2")
    assert found.load_average >= 0


def test_percentiles_are_measured_values(clock: Clock):
    class Uneven(Slow):
        def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
            self.image_ms = len(self.seen)
            return super().predict(images)

    found = latency(Uneven(clock, "a", 0, 0), IMAGES, warmup_s=0, calls=100)
    ordered = sorted(found.samples_ms)
    assert ordered == list(found.samples_ms) and len(set(ordered)) == 100
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (ordered[49], ordered[89], ordered[98])


def test_models_take_turns(clock: Clock):
    a, b = Slow(clock, "a", 1, 0), Slow(clock, "b", 3, 0)
    found = interleaved({"a": a, "b": b}, IMAGES, warmup_s=0.01, calls=7)
    assert b.overhead_ms / a.overhead_ms == found["b"].p50_ms / found["a"].p50_ms
    timed = [name for name, count in clock.calls if count == 1][-14:]
    assert timed == ["a", "b"] * 7
    batches = [name for name, count in clock.calls if count == 128]
    assert batches == ["a", "b"] + ["a", "b"] * 3
    # Ten milliseconds of warm-up at one and at three a call, and the first one.
    singles = [name for name, count in clock.calls if count == 1]
    assert (singles.count("a") - 7, singles.count("b") - 7) == (10, 4)


def test_what_an_engine_runs_is_kept_beside_its_times(clock: Clock):
    a, b = Slow(clock, "a", 1, 0), Slow(clock, "b", 3, 0)
    operators = {"b": {"QLinearConv": 9}}
    found = interleaved({"a": a, "b": b}, IMAGES, warmup_s=0, calls=3, operators=operators)
    assert (found["a"].operators, found["b"].operators) == ({}, {"QLinearConv": 9})


def test_calls_walk_through_the_images(clock: Clock):
    model = Slow(clock, "a", 1, 0)
    latency(model, IMAGES, warmup_s=0, calls=6)
    singles = [seen for seen in model.seen if len(seen) == 1][-6:]
    np.testing.assert_array_equal(np.concatenate(singles), IMAGES[[0, 1, 2, 3, 4, 0]])
    (batch, *_) = [seen for seen in model.seen if len(seen) == 128]
    np.testing.assert_array_equal(batch[:5], IMAGES)
    np.testing.assert_array_equal(batch[5:10], IMAGES)


def test_nothing_to_measure_is_refused(clock: Clock):
    model = Slow(clock, "a", 1, 0)
    for models, images, calls in [
        ({}, IMAGES, 1),
        ({"a": model}, IMAGES[:0], 1),
        ({"a": model}, IMAGES, 0),
    ]:
        with pytest.raises(DeployError, match="bench: need models, images and calls") as caught:
            interleaved(models, images, warmup_s=0, calls=calls)
        assert caught.value.exit_code == 65


def test_real_engine_is_timed(exported: Exported):
    start = time.perf_counter()
    models = {"fp32": load(exported.float_onnx), "int8": load(exported.x86)}
    found = interleaved(models, exported.images, warmup_s=0.02, calls=30)
    wall_ms = (time.perf_counter() - start) * 1e3
    for name, result in found.items():
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms <= max(result.samples_ms)
        assert len(result.samples_ms) == 30 and result.precision == name
        assert result.throughput > 0
    assert sum(sum(result.samples_ms) for result in found.values()) < wall_ms
    assert exported.images.shape[1:] == SHAPE


def test_sizes_are_bytes_on_disk_and_as_a_download(tmp_path: Path):
    path = tmp_path / "codes.bin"
    codes = np.zeros(100_000, np.int8)
    codes[::100] = 7
    path.write_bytes(codes.tobytes())
    found = sizes(path)
    assert found["bytes"] == 100_000
    # What compresses must also come back: decompress an archive of the size that was reported.
    archive = lzma.compress(path.read_bytes(), preset=6)
    assert found["compressed_bytes"] == len(archive) < 1000
    assert lzma.decompress(archive) == path.read_bytes()
    with pytest.raises(DeployError) as caught:
        sizes(tmp_path / "none")
    assert caught.value.exit_code == 66
