"""How fast ResNet-18 gets with channels removed, in float and in 8 bits -> docs/results.md.

    .venv/bin/python benchmarks/latency.py      # on a machine with nothing else to do

Random weights, and random images to calibrate the 8 bits: speed depends on neither. Every group of
channels keeps the same share, rounded to a multiple of eight. One process, one thread. A round
times all engines in turn, call by call, so that each finds its weights pushed out of the caches by
the others, as beside other work; then each alone, call after call, with warm caches. ONNX Runtime
and OpenVINO are each given their own form of the 8-bit graph.
"""

import argparse
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sections import write_section

from advprune.channels import remove
from advprune.coupling import couple
from advprune.models import Architecture, build
from advprune.stats import macs, parameter_count
from advprune.surgery import widths
from deploy.bench import interleaved, latency
from deploy.runtime import EdgeModel, load
from deploy.runtimes.ort import PROVIDERS
from export import graph
from export.check import assert_fused
from export.encodings import openvino_form, x86_form
from export.quantize import quantize
from export.to_onnx import to_onnx

NETWORK = Architecture("resnet18", 10, (3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
REMOVED = (0.0, 0.5, 0.75, 0.9)
MULTIPLE = 8
CALIBRATION = 128
RUNTIMES = ("ONNX Runtime", "OpenVINO")
# Of a GPU, where there is one: name in the table -> runtime, and the files that it takes.
ON_GPU = {
    "ONNX Runtime, CUDA": ("ort-cuda", ("fp32",)),
    "ONNX Runtime, TensorRT": ("ort-tensorrt", ("fp32", "int8")),
}
WARMUP_S = 0.1


@dataclass(frozen=True)
class Candidate:
    """A network without a share of its channels, and its files.

    Attributes:
        narrowest, widest: outputs of its convolutions.
        int8: the 8-bit function as TensorRT takes it.
        x86, openvino: the same one for ONNX Runtime and for OpenVINO.
        kernels: which integer kernels ONNX Runtime runs `x86` with, and how many.
    """

    removed: float
    narrowest: int
    widest: int
    parameters: int
    macs: int
    fp32: Path
    int8: Path
    x86: Path
    openvino: Path
    kernels: dict[str, int]


def name(removed: float, precision: str, runtime: str) -> str:
    """Of one engine: the cells of its line in the table."""
    return f"{100 * removed:g} % | {precision} | {runtime}"


DENSE = name(0.0, "fp32", "ONNX Runtime")


@dataclass
class Timings:
    """Of one engine, an entry for each round."""

    in_turn_ms: list[float] = field(default_factory=list)
    alone_ms: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)


def make(arch: Architecture, removed: float, folder: Path) -> Candidate:
    """Build the network, cut it and write its files."""
    net = build(arch)
    groups = couple(net, arch.shape)
    kept = {g.name: torch.arange(g.width) < rounded(g.width * (1.0 - removed)) for g in groups}
    remove(net, groups, kept)
    stem = f"{100 * removed:g}"
    int8 = folder / f"{stem}.int8.onnx"
    fp32, x86, openvino = (folder / f"{stem}.{form}.onnx" for form in ("fp32", "x86", "openvino"))
    images = np.random.default_rng(0).random((CALIBRATION, *arch.shape), dtype=np.float32)
    to_onnx(net, arch.shape, fp32)
    quantize(fp32, images, int8)
    graph.save(x86_form(graph.load(int8)), x86)
    graph.save(openvino_form(graph.load(int8)), openvino)
    kernels = assert_fused(x86)
    integer = {k: n for k, n in kernels.items() if k.startswith("Q") and k != "QuantizeLinear"}
    outputs = [widths(net)[g.makers[0].layer][0] for g in groups]
    return Candidate(
        removed,
        min(outputs),
        max(outputs),
        parameter_count(net),
        macs(net, arch.shape),
        fp32,
        int8,
        x86,
        openvino,
        kernels=integer,
    )


def rounded(width: float) -> int:
    """The nearest multiple of eight, and no less than eight."""
    return max(MULTIPLE, MULTIPLE * round(width / MULTIPLE))


def gpu_runtimes() -> list[str]:
    """Those of `ON_GPU` whose provider this onnxruntime brings along."""
    there = onnxruntime.get_available_providers()
    return [name for name, (runtime, _) in ON_GPU.items() if PROVIDERS[runtime] in there]


def engines(
    candidates: Sequence[Candidate], openvino: bool, gpu: Sequence[str] = ()
) -> Iterator[tuple[str, EdgeModel]]:
    """Every file in ONNX Runtime, in OpenVINO where that is installed, and on a GPU."""
    for made in candidates:
        yield name(made.removed, "fp32", "ONNX Runtime"), load(made.fp32)
        yield name(made.removed, "int8", "ONNX Runtime"), load(made.x86)
        if openvino:
            yield name(made.removed, "fp32", "OpenVINO"), load(made.fp32, runtime="openvino")
            yield name(made.removed, "int8", "OpenVINO"), load(made.openvino, runtime="openvino")
        for shown in gpu:
            runtime, precisions = ON_GPU[shown]
            for precision in precisions:
                file = made.fp32 if precision == "fp32" else made.int8
                yield name(made.removed, precision, shown), load(file, runtime=runtime)


def measure(models: dict[str, EdgeModel], rounds: int, calls: int) -> dict[str, Timings]:
    """Time all engines in turn and each alone, `rounds` times over."""
    shape = next(iter(models.values())).info.shape
    images = np.random.default_rng(1).random((16, *shape), dtype=np.float32)
    found = {engine: Timings() for engine in models}
    for _ in range(rounds):
        in_turn = interleaved(models, images, warmup_s=WARMUP_S, calls=calls)
        for engine, model in models.items():
            alone = latency(model, images, warmup_s=WARMUP_S, calls=calls)
            found[engine].in_turn_ms.append(in_turn[engine].p50_ms)
            found[engine].alone_ms.append(alone.p50_ms)
            found[engine].throughput.append(in_turn[engine].throughput)
    return found


def networks_table(candidates: Sequence[Candidate]) -> str:
    lines = [
        "| channels removed | widths | parameters | MACs | fp32 file | int8 file | int8 kernels |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    for made in candidates:
        sizes = [f"{path.stat().st_size / 1e6:.2f} MB" for path in (made.fp32, made.x86)]
        kernels = ", ".join(f"{count} {name}" for name, count in made.kernels.items())
        lines.append(
            f"| {100 * made.removed:g} % | {made.narrowest}-{made.widest} "
            f"| {made.parameters / 1e6:.2f} M | {made.macs / 1e6:.1f} M "
            f"| {' | '.join(sizes)} | {kernels} |"
        )
    return "\n".join(lines)


def timings_table(candidates: Sequence[Candidate], found: dict[str, Timings]) -> str:
    """Medians over the rounds; of ratios, taken within each round, the range as well."""
    lines = [
        "| channels removed | precision | runtime | in turn, ms | speed-up | alone, ms | speed-up "
        "| batches, images/s |",
        "|--:|---|---|--:|--:|--:|--:|--:|",
    ]
    for made in candidates:
        for precision, runtime in itertools.product(("fp32", "int8"), (*RUNTIMES, *ON_GPU)):
            engine = name(made.removed, precision, runtime)
            if engine in found or runtime in RUNTIMES:
                lines.append(f"| {engine} | {_cells(found.get(engine), found[DENSE])} |")
    return "\n".join(lines)


def _cells(timings: Timings | None, dense: Timings) -> str:
    if timings is None:
        return "not installed | | | | "
    return " | ".join(
        [
            f"{statistics.median(timings.in_turn_ms):.2f}",
            _speed_up(dense.in_turn_ms, timings.in_turn_ms),
            f"{statistics.median(timings.alone_ms):.2f}",
            _speed_up(dense.alone_ms, timings.alone_ms),
            f"{statistics.median(timings.throughput):,.0f}",
        ]
    )


def _speed_up(dense: Sequence[float], times: Sequence[float]) -> str:
    ratios = [slow / fast for slow, fast in zip(dense, times, strict=True)]
    return f"**{statistics.median(ratios):.1f}** ({min(ratios):.1f}-{max(ratios):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="of one image, in each round")
    options = parser.parse_args()
    openvino = importlib.util.find_spec("openvino") is not None  # an extra
    torch.set_num_threads(1)
    started, load_average = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        candidates = [make(NETWORK, removed, Path(folder)) for removed in REMOVED]
        models = dict(engines(candidates, openvino, gpu_runtimes()))
        found = measure(models, options.rounds, options.calls)
        how = f"{options.rounds} rounds of {options.calls} calls; load average {load_average:.1f}"
        text = f"{networks_table(candidates)}\n\n{timings_table(candidates, found)}\n\n{how}"
    write_section("latency", text)
    sys.stdout.write(f"{text}\nin {(time.monotonic() - started) / 60:.1f} minutes\n")


if __name__ == "__main__":
    main()
