"""How fast and how large: measured through `predict`, as the caller will meet it."""

import lzma
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import EdgeModel

THROUGHPUT_BATCH = 128
_FEWEST_BATCHES = 3


@dataclass(frozen=True)
class Latency:
    """Wall time of calls with one image, and throughput in batches.

    Attributes:
        runtime, version, device, providers, precision, threads: of the model.
        p50_ms, p90_ms, p99_ms: percentiles of one call with one image; each is a measured value.
        throughput: images per second in batches of `throughput_batch`, from the median batch.
        samples_ms: every call with one image, in order.
        load_average: of the machine over the last minute, before the first call; above the number
            of cores, other work was in the way.
        operators: what the engine really runs, e.g. {"QLinearConv": 9}, as far as the caller knew:
            8 bits that run in float kernels are 8 bits in name alone.
    """

    runtime: str
    version: str
    device: str
    providers: tuple[str, ...]
    precision: str
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    samples_ms: tuple[float, ...]
    load_average: float
    operators: Mapping[str, int]
    batch: int = 1
    throughput_batch: int = THROUGHPUT_BATCH


def latency(
    model: EdgeModel, images: NDArray[np.float32], *, warmup_s: float, calls: int
) -> Latency:
    """Time one model, see `interleaved`."""
    return interleaved({"model": model}, images, warmup_s=warmup_s, calls=calls)["model"]


def interleaved(
    models: Mapping[str, EdgeModel],
    images: NDArray[np.float32],
    *,
    warmup_s: float,
    calls: int,
    operators: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> dict[str, Latency]:
    """Time several models in turn, call by call, so that what slows the machine slows them alike.

    Only then is a ratio of two of these numbers worth quoting.

    Args:
        models: name -> model; all take the same images.
        images: float32 (N, C, H, W) in [0, 1]; calls walk through them, batches repeat them.
        warmup_s: seconds of calls for each model that are not counted.
        calls: timed calls with one image for each model, at least 1.
        operators: name -> counts of what that engine runs, to be kept beside its times.

    Raises:
        DeployError: 65 if there is nothing to measure or the images do not fit a model.
    """
    if not models or calls < 1 or not len(images):
        raise DeployError(
            f"bench: need models, images and calls, got {len(models)}, {len(images)} and {calls}",
            65,
        )
    load_average = os.getloadavg()[0]
    singles = [images[i : i + 1] for i in range(len(images))]
    batch = np.resize(images, (THROUGHPUT_BATCH, *images.shape[1:]))
    for model in models.values():
        model.predict(batch)
        warm_up(model, singles[0], warmup_s)
    once = {name: np.empty(calls) for name in models}
    for call in range(calls):
        for name, model in models.items():
            once[name][call] = milliseconds(model, singles[call % len(singles)])
    rounds = max(_FEWEST_BATCHES, calls // THROUGHPUT_BATCH)
    whole = {name: np.empty(rounds) for name in models}
    for turn in range(rounds):
        for name, model in models.items():
            whole[name][turn] = milliseconds(model, batch)
    return {
        name: _summary(model, once[name], whole[name], load_average, operators.get(name, {}))
        for name, model in models.items()
    }


def warm_up(model: EdgeModel, image: NDArray[np.float32], seconds: float) -> None:
    """Call a model with one image until the time is over, at least once."""
    end = time.perf_counter_ns() + seconds * 1e9
    model.predict(image)
    while time.perf_counter_ns() < end:
        model.predict(image)


def milliseconds(model: EdgeModel, images: NDArray[np.float32]) -> float:
    """Wall time of one call."""
    start = time.perf_counter_ns()
    model.predict(images)
    return (time.perf_counter_ns() - start) / 1e6


def _summary(
    model: EdgeModel,
    once: NDArray[np.float64],
    whole: NDArray[np.float64],
    load_average: float,
    operators: Mapping[str, int],
) -> Latency:
    p50, p90, p99 = np.percentile(once, [50, 90, 99], method="inverted_cdf")
    return Latency(
        runtime=model.info.runtime,
        version=model.info.version,
        device=model.info.device,
        providers=model.info.providers,
        precision=model.info.precision,
        threads=model.info.threads,
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        throughput=THROUGHPUT_BATCH / float(np.median(whole)) * 1e3,
        samples_ms=tuple(once.tolist()),
        load_average=load_average,
        operators=dict(operators),
    )


def sizes(path: Path) -> dict[str, int]:
    """Size of a file on disk and as a download (xz, preset 6), in bytes.

    Raises:
        DeployError: 66 if there is no such file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DeployError(f"{path}: no such file; run the export first", 66) from error
    return {"bytes": len(data), "compressed_bytes": len(lzma.compress(data, preset=6))}
