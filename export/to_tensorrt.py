"""A TensorRT engine from an ONNX graph, on the machine that will run it.

Precision lies in the graph: 8-bit layers are those between Quantize and Dequantize, so one source
serves TensorRT 10.3 to 11, and only names that all of them have are used. An engine fits one
TensorRT version and one GPU, unless it is built to fit more: ship the ONNX file and build there.
The calls of TensorRT are those of `build_engine.py`, which does the same without this package; here
the graph is looked at first, and the card says more.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from advprune.errors import CannotCreate, Incompatible, Refused, StorageFailed, Unavailable
from advprune.spans import span
from export import graph
from export.build_engine import Refused as NotBuilt
from export.build_engine import TensorRt, beside, stored_timings, write_atomic
from export.engine_card import BuildOptions, Gpu, describe, make_card
from export.patterns import has_two_in_four

_REFUSALS: dict[int, type[Refused]] = {
    69: Unavailable,
    73: CannotCreate,
    74: StorageFailed,
    78: Incompatible,
}


@dataclass(frozen=True)
class Built:
    """An engine, its card, and the kernel timings that make the next build fast and alike."""

    path: Path
    card: Path
    timing_cache: Path
    version: str


@dataclass(frozen=True)
class Skipped:
    """Why this machine cannot build engines, and what would change that."""

    reason: str


@span("conversion")
def build_engine(
    onnx_path: Path, out_path: Path, shape: tuple[int, int, int], options: BuildOptions, gpu: Gpu
) -> Built | Skipped:
    """Build an engine for batches of 1 to `options.max_batch`, and write its card beside it.

    The timing cache `out_path` + ".timing" is read if it exists and written in any case. Sparse
    kernels are tried where every weight that could be 2:4 is.

    Args:
        onnx_path: a float graph, or a quantised one in the TensorRT form.
        out_path: the engine file to write.
        shape: of one image as the graph takes it, (C, H, W).
        options: batches, and which other machines it must run on.
        gpu: the one that this thread computes on, for the card.

    Raises:
        NotFound, BadData: the graph is missing or not valid.
        Incompatible: TensorRT does not accept the graph, or it is the x86 form.
        CannotCreate, StorageFailed: a file cannot be written.
    """
    with _told():
        options.check()
    model = graph.load(onnx_path)
    if types := graph.activation_types(model) - {"int8"}:
        raise Incompatible(f"{onnx_path}: {types} codes; give TensorRT the graph of quantize()")
    if (takes := tuple(describe(model.graph.input[0])["shape"][1:])) != shape:
        raise Incompatible(f"{onnx_path}: takes images of {takes}, not of {shape}")
    try:
        tool = TensorRt(str(onnx_path))
        builder = tool.builder()
    except NotBuilt as error:
        return Skipped(str(error))
    onnx_bytes = onnx_path.read_bytes()
    with _told():
        network = tool.parse(builder, onnx_bytes)
        plan, timings = tool.build(
            builder,
            network,
            shape,
            options,
            stored_timings(out_path),
            sparse=has_two_in_four(onnx_path),
        )
        _, engine = tool.open(plan, host_code=options.version_compatible)
        form = tool.trt.LayerInformationFormat.JSON
        card = make_card(
            plan,
            onnx_bytes,
            model,
            tensorrt=tool.version,
            gpu=gpu,
            options=options,
            inspection=engine.create_engine_inspector().get_engine_information(form),
        )
        write_atomic(out_path, plan)
        write_atomic(beside(out_path, ".timing"), timings)
        write_atomic(beside(out_path, ".json"), card)
    return Built(out_path, beside(out_path, ".json"), beside(out_path, ".timing"), tool.version)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the device's script refuses, in the words of this package."""
    try:
        yield
    except NotBuilt as error:
        raise _REFUSALS[error.exit_code](str(error)) from error
