"""One query after another, as in MLPerf Inference's scenario "single stream".

The next query is issued when the last is answered, one image each, until both a minimum duration
and a minimum number of queries are reached. The result is an upper estimate of the 90th percentile
that holds with 99 % confidence however short the run was: LoadGen's early-stopping estimate
(https://github.com/mlcommons/inference, loadgen/early_stopping.cc and results.cc).
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.bench import milliseconds, warm_up
from deploy.errors import DeployError
from deploy.runtime import EdgeModel
from deploy.statistics import upper_tail

PERCENTILE = 0.9
CONFIDENCE = 0.99
FEWEST_QUERIES = 64  # with fewer, the confidence is out of reach whatever the latencies are


@dataclass(frozen=True)
class SingleStream:
    """What a run of single queries found.

    Attributes:
        seconds: the minimum duration that was asked for; the last query was issued after it.
        queries: that were issued.
        p90_ms: the measured 90th percentile.
        p90_estimate_ms: LoadGen's early-stopping estimate of it, never below `p90_ms`.
        discarded: queries that were slower than the estimate, at most.
        queries_per_second: by the mean latency.
        samples_ms: every query, in order.
        load_average: of the machine over the last minute, before the first query.
    """

    seconds: float
    queries: int
    p90_ms: float
    p90_estimate_ms: float
    discarded: int
    queries_per_second: float
    samples_ms: tuple[float, ...]
    load_average: float


def single_stream(
    model: EdgeModel,
    images: NDArray[np.float32],
    *,
    seconds: float,
    queries: int = FEWEST_QUERIES,
    warmup_s: float = 0.0,
) -> SingleStream:
    """Query a model image by image for at least `seconds` and at least `queries` times.

    Args:
        images: float32 (N, C, H, W) in [0, 1]; queries walk through them.
        seconds: not negative; MLPerf asks for 600.
        queries: at least `FEWEST_QUERIES`.
        warmup_s: seconds of queries before that are not counted.

    Raises:
        DeployError: 65, an argument lies outside its range or the images do not fit the model.
    """
    if not 0 <= seconds < float("inf") or queries < FEWEST_QUERIES or not len(images):
        raise DeployError(
            f"single stream: need images, seconds >= 0 and at least {FEWEST_QUERIES} queries, "
            f"got {len(images)}, {seconds:g} and {queries}",
            65,
        )
    load_average = os.getloadavg()[0]
    singles = [images[i : i + 1] for i in range(len(images))]
    warm_up(model, singles[0], warmup_s)
    samples: list[float] = []
    end = time.perf_counter_ns() + seconds * 1e9
    issued_after_the_end = False
    while len(samples) < queries or not issued_after_the_end:
        issued_after_the_end = time.perf_counter_ns() >= end
        samples.append(milliseconds(model, singles[len(samples) % len(singles)]))
    allowed = over_latency(len(samples))
    return SingleStream(
        seconds=seconds,
        queries=len(samples),
        p90_ms=float(np.percentile(samples, 100 * PERCENTILE, method="inverted_cdf")),
        p90_estimate_ms=early_stopping(samples),
        discarded=allowed - 1,
        queries_per_second=1e3 / float(np.mean(samples)),
        samples_ms=tuple(samples),
        load_average=load_average,
    )


def early_stopping(
    samples: Sequence[float], percentile: float = PERCENTILE, confidence: float = CONFIDENCE
) -> float:
    """The estimate of a percentile: the t-th highest latency, t as `over_latency` says.

    Raises:
        ValueError: there are too few queries for the confidence.
    """
    return sorted(samples)[-over_latency(len(samples), percentile, confidence)]


def over_latency(
    queries: int, percentile: float = PERCENTILE, confidence: float = CONFIDENCE
) -> int:
    """The most queries above a latency bound with which the bound still passes, at least 1.

    If the bound were below the true percentile, each query would exceed it with a probability of
    more than 1 - percentile. A count is passed where so few would then be seen at most one time in
    a hundred: P(X <= t) < 1 - confidence for X ~ Binomial(queries, 1 - percentile).

    Raises:
        ValueError: there are too few queries for the confidence.
    """

    def passes(count: int) -> bool:
        # Counted from the other side, P(queries - X >= queries - t), it is a sum of small terms.
        return upper_tail(queries - count, queries, percentile) < 1 - confidence

    low, high = 0, queries  # passes(t) falls from true to false somewhere between these
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    if low == 0:
        raise ValueError(f"over_latency: {queries} queries are too few for {confidence:g}")
    return low
