"""Is the file the network? Logits, operators that really run, zeros that survived."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from advprune.errors import BadData, Incompatible
from advprune.evaluate import SAME_LOGITS
from advprune.spans import span
from export import graph

# A product of two activations, as in attention, may stay float: it has no weights.
_FLOAT_KERNELS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm"}


def parity(reference: NDArray[np.float32], engine: NDArray[np.float32]) -> dict[str, float]:
    """How far the logits of an engine are from those of its reference, on the same images.

    Args:
        reference: float32 (N, K).
        engine: float32 (N, K).

    Returns:
        argmax_agreement: share of images with the same predicted class.
        max_logit_gap, mean_logit_gap: over the absolute differences of all logits.
        rows_differing: share of images with any logit off by more than 1e-5.

    Raises:
        Incompatible: the shapes differ.
        BadData: no images, or logits that are not finite.
    """
    if reference.shape != engine.shape:
        raise Incompatible(f"parity: shapes differ, {reference.shape} against {engine.shape}")
    if reference.ndim != 2 or not reference.size:
        raise BadData(f"parity: need logits (N, K), got {reference.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(engine).all()):
        raise BadData("parity: logits are not finite; the engine or its reference is broken")
    gaps = np.abs(reference.astype(np.float64) - engine)
    return {
        "argmax_agreement": float(np.mean(reference.argmax(1) == engine.argmax(1))),
        "max_logit_gap": float(gaps.max()),
        "mean_logit_gap": float(gaps.mean()),
        "rows_differing": float(np.mean(gaps.max(axis=1) > SAME_LOGITS)),
    }


@span("parity")
def assert_same_function(first: Path, others: Sequence[Path], images: NDArray[np.float32]) -> None:
    """Encodings of one quantised function: the same bits, where every node runs as written.

    Args:
        images: float32 (N, C, H, W), as all graphs take them.

    Raises:
        Incompatible: a logit differs.
    """
    expected = _as_written(first, images)
    for other in others:
        got = _as_written(other, images)
        if not np.array_equal(expected, got):
            off = int((expected != got).any(axis=1).sum())
            raise Incompatible(
                f"{other}: gives {off} of {len(images)} images other logits than {first.name}; "
                "report this model"
            )


def _as_written(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.load(path).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])


def operator_counts(path: Path) -> dict[str, int]:
    """How many nodes of each type ONNX Runtime runs on this CPU, after all of its fusions."""
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder, "optimised.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry("session.x64quantprecision", "1")  # as deployed
        options.log_severity_level = 3  # it warns that the file suits this machine only: it does
        onnxruntime.InferenceSession(
            graph.load(path).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        model = onnx.load(optimised)
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def assert_fused(path: Path) -> dict[str, int]:
    """The operator counts of a graph whose convolutions and linear layers all run on integers.

    Raises:
        Incompatible: a float kernel is left, so "int8" would be said of float arithmetic.
    """
    counts = operator_counts(path)
    floats = {kind: count for kind, count in counts.items() if kind in _FLOAT_KERNELS}
    if floats:
        raise Incompatible(
            f"{path}: ONNX Runtime runs {floats} in float; write the x86 form of a quantised graph"
        )
    return counts


def weights(path: Path) -> dict[str, NDArray]:
    """Name -> values of every Conv, Gemm and MatMul weight; int8 codes where it is quantised."""
    model = graph.load(path)
    constants = graph.constants(model)
    producers = graph.producers(model)
    found: dict[str, NDArray] = {}
    for node in model.graph.node:
        if node.op_type not in {"Conv", "Gemm", "MatMul"}:
            continue
        name = node.input[1]
        if name in producers and producers[name].op_type == "DequantizeLinear":
            name = producers[name].input[0]
        if name in constants:
            found[name.removesuffix("_quantized")] = constants[name]
    return found


def sparsity_kept(float_onnx: Path, int8_onnx: Path) -> dict[str, tuple[int, int]]:
    """Weight name -> its non-zeros in the float file and in the int8 file, the latter never more.

    Raises:
        Incompatible: a weight is missing on one side, or a zero came back to life.
    """
    before, after = weights(float_onnx), weights(int8_onnx)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise Incompatible(f"{int8_onnx}: weights {odd} are not in both files; quantise again")
    for name, values in before.items():
        if grown := int(np.count_nonzero(after[name][values == 0])):
            raise Incompatible(f"{int8_onnx}: {name} has {grown} weights that its mask removed")
    return {
        name: (int(np.count_nonzero(values)), int(np.count_nonzero(after[name])))
        for name, values in before.items()
    }
