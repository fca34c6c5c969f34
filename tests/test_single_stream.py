"""Promise: the estimate is LoadGen's, and a run is as long and as many queries as asked for."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from deploy import single_stream as module
from deploy.errors import DeployError
from deploy.runtime import EdgeInfo
from deploy.single_stream import early_stopping, over_latency, single_stream

IMAGES = np.random.default_rng(0).random((3, 1, 2, 2), dtype=np.float32)


class Clock:
    now = 0


class Timed:
    """A model whose queries take the given milliseconds in turn, on a clock that they move."""

    def __init__(self, clock: Clock, *times: float) -> None:
        self.info = EdgeInfo("fake", "fp32", "cpu", ("fake",), "0", "float32 NCHW", (1, 2, 2), 3)
        self.clock, self.times = clock, times
        self.seen: list[NDArray[np.float32]] = []

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.clock.now += int(1e6 * self.times[len(self.seen) % len(self.times)])
        self.seen.append(images)
        return np.zeros((len(images), 3), np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: clock.now)
    return clock


# The estimate -----------------------------------------------------------------------------------


def brute_force(queries: int, percentile: float, confidence: float) -> int:
    """LoadGen's rule as it is published: for each t the least h, and of those t the largest.

    h is the least number of queries below the bound such that t or fewer above it are seen with a
    probability under 1 - confidence, were the bound the true percentile; and queries >= h + t.
    """
    found = 0
    for t in range(1, queries):
        fits = binom.cdf(t, np.arange(t + 1, queries + 1), 1 - percentile) < 1 - confidence
        if not fits.any():
            break
        found = t
    return found


@pytest.mark.parametrize("queries", [64, 65, 93, 94, 100, 257, 1000, 2000])
def test_the_number_of_slow_queries_is_that_of_the_binomial_distribution(queries: int) -> None:
    assert over_latency(queries) == brute_force(queries, 0.9, 0.99)


@pytest.mark.parametrize("percentile", [0.5, 0.97, 0.99])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_so_it_is_for_other_percentiles(percentile: float, confidence: float) -> None:
    for queries in (662, 700, 1500):
        expected = brute_force(queries, percentile, confidence)
        assert over_latency(queries, percentile, confidence) == expected


def test_the_fewest_queries_are_those_of_the_rules() -> None:
    # 64 for the 90th percentile of single stream, 662 for the 99th of multistream.
    assert over_latency(64) == over_latency(662, 0.99) == 1
    for queries, percentile in ((63, 0.9), (661, 0.99), (0, 0.9), (1, 0.9)):
        with pytest.raises(ValueError, match=f"{queries} queries are too few"):
            over_latency(queries, percentile)


def test_many_queries_come_close_to_the_measured_percentile() -> None:
    for queries in (24_576, 1_000_000):
        allowed = over_latency(queries)
        assert binom.cdf(allowed, queries, 0.1) < 0.01 <= binom.cdf(allowed + 1, queries, 0.1)
        assert 0.095 < allowed / queries < 0.1


def test_the_estimate_is_a_latency_that_was_measured() -> None:
    samples = [float(n) for n in np.random.default_rng(0).permutation(1000)]
    discarded = brute_force(1000, 0.9, 0.99) - 1
    assert early_stopping(samples) == 999 - discarded
    assert sum(sample > early_stopping(samples) for sample in samples) == discarded
    assert early_stopping(samples[:64]) == max(samples[:64])


def test_the_estimate_is_below_the_true_percentile_at_most_once_in_a_hundred() -> None:
    rng = np.random.default_rng(0)
    truth = float(np.log(10))  # of the exponential distribution
    runs = [early_stopping(rng.exponential(size=300).tolist()) for _ in range(2000)]
    plain = [float(np.percentile(rng.exponential(size=300), 90)) for _ in range(2000)]
    assert np.mean([found < truth for found in runs]) < 0.01
    assert np.mean([found < truth for found in plain]) > 0.3


# The run ----------------------------------------------------------------------------------------


def test_it_lasts_as_long_as_asked_for(clock: Clock) -> None:
    model = Timed(clock, 10.0)
    found = single_stream(model, IMAGES, seconds=2.0)
    # Queries are issued at 0, 10, ..., 2000 ms: the last one no earlier than the end.
    assert found.queries == len(found.samples_ms) == 201
    assert found.queries_per_second == pytest.approx(100)
    assert (found.p90_ms, found.p90_estimate_ms, found.seconds) == (10.0, 10.0, 2.0)


def test_it_has_as_many_queries_as_asked_for(clock: Clock) -> None:
    assert single_stream(Timed(clock, 10.0), IMAGES, seconds=0).queries == 64
    assert single_stream(Timed(clock, 10.0), IMAGES, seconds=0.1, queries=300).queries == 300


def test_the_result_comes_from_its_samples(clock: Clock) -> None:
    model = Timed(clock, *range(1, 101))
    found = single_stream(model, IMAGES, seconds=0, queries=100)
    # The query before those that count took the first millisecond.
    assert found.samples_ms == (*map(float, range(2, 101)), 1.0)
    assert found.p90_ms == 90
    assert found.discarded == brute_force(100, 0.9, 0.99) - 1
    assert found.p90_estimate_ms == 100 - found.discarded > found.p90_ms
    assert found.load_average >= 0
    np.testing.assert_array_equal(np.concatenate(model.seen[1:5]), IMAGES[[0, 1, 2, 0]])


def test_warming_up_counts_for_nothing(clock: Clock) -> None:
    model = Timed(clock, 10.0)
    found = single_stream(model, IMAGES, seconds=0, warmup_s=1.0)
    assert found.queries == 64 and len(model.seen) == 64 + 100


@pytest.mark.parametrize(
    ("images", "seconds", "queries"),
    [
        (IMAGES[:0], 1.0, 64),
        (IMAGES, -1.0, 64),
        (IMAGES, float("nan"), 64),
        (IMAGES, float("inf"), 64),
        (IMAGES, 1.0, 63),
    ],
)
def test_what_cannot_be_run_is_refused(
    clock: Clock, images: NDArray[np.float32], seconds: float, queries: int
) -> None:
    with pytest.raises(DeployError, match="at least 64 queries, got") as caught:
        single_stream(Timed(clock, 1.0), images, seconds=seconds, queries=queries)
    assert caught.value.exit_code == 65
