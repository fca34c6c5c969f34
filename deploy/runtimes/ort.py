"""ONNX Runtime, on the CPU or through one of its providers for NVIDIA GPUs."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import EdgeInfo, Precision, digest
from deploy.runtimes import forms

try:
    import onnxruntime
    from onnxruntime.capi import (
        onnxruntime_pybind11_state as refusals,  # pyright: ignore[reportAttributeAccessIssue]
    )
except ModuleNotFoundError as missing:
    raise DeployError("onnxruntime is missing; type: pip install onnxruntime", 69) from missing

_REFUSALS = (
    refusals.EPFail,
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoModel,
    refusals.NotImplemented,
    refusals.RuntimeException,
)
_CPU = "CPUExecutionProvider"
PROVIDERS: Mapping[str, str] = {
    "ort": _CPU,
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
_PACKAGES = {"ort": "onnxruntime", "ort-cuda": "onnxruntime-gpu", "ort-tensorrt": "onnxruntime-gpu"}
# With this, a session that would leave a node to the CPU is refused; where the CPU itself was
# asked for, ONNX Runtime refuses the setting.
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
# On x86 without VNNI the fastest kernels add pairs of products in 16 bits and saturate: every logit
# is off, by as much as 7.7 on digits. So asked, others are taken there, and elsewhere the same.
EXACT_SUMS = "session.x64quantprecision"
# A graph given as bytes may name files with weights, which onnxruntime would then read relative
# to the current folder, upwards too. Nothing can lie under this path, so such a graph is refused.
_NO_FOLDER = str(Path(os.devnull, "none"))


class OrtModel:
    """An ONNX file in ONNX Runtime, all of it on the provider that was asked for.

    Precision and input form are read from the graph, not from what its metadata claim: a graph
    is 8-bit if it dequantises, and it takes camera images if its input is uint8.
    """

    def __init__(self, data: bytes, origin: str, threads: int, runtime: str = "ort") -> None:
        """Open a graph with all its weights inside.

        Args:
            data: the whole file.
            origin: its name, for messages.
            threads: that one call may use.
            runtime: a key of `PROVIDERS`.

        Raises:
            DeployError: 65 or 69, see `deploy.runtime.load`.
        """
        precision = forms.precision_of(data)
        self._origin = origin
        self._session = _open(data, origin, threads, runtime, precision)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        form, shape, classes = forms.ends([*map(_end, inputs)], [*map(_end, outputs)], origin)
        self._input = inputs[0].name
        self.info = EdgeInfo(
            runtime="onnxruntime",
            precision=precision,
            device="cpu" if runtime == "ort" else "cuda:0",
            providers=tuple(self._session.get_providers()),
            sha256=digest(data),
            input=form,
            shape=shape,
            classes=classes,
            threads=threads,
            version=onnxruntime.__version__,
        )

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images, see `EdgeModel.predict`."""
        return forms.predict(self._run, images, self.info, self._origin)

    def _run(self, batch: NDArray) -> NDArray:
        try:
            return np.asarray(self._session.run(None, {self._input: batch})[0])
        except _REFUSALS as error:
            reason = " ".join(str(error).split())
            raise DeployError(f"{self._origin}: cannot be run ({reason})", 65) from error


def _open(
    data: bytes, origin: str, threads: int, runtime: str, precision: Precision
) -> onnxruntime.InferenceSession:
    asked = PROVIDERS[runtime]
    if asked not in onnxruntime.get_available_providers():
        raise _fallback(origin, runtime, f"{_CPU} would run")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong with the file comes back as an exception
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NO_FOLDER
    )
    options.add_session_config_entry(EXACT_SUMS, "1")
    # Else it looks for its own format, whatever the file has been found to be.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if asked != _CPU:
        options.add_session_config_entry(_NO_FALLBACK, "1")
    try:
        session = onnxruntime.InferenceSession(
            data,
            options,
            providers=[asked],
            provider_options=[_provider_options(runtime, precision)],
            # Otherwise the package itself tries other providers, and tells so on the terminal.
            enable_fallback=0,
        )
    except _REFUSALS as error:
        reason = str(error).splitlines()[0]
        if "fallback to CPU EP" in reason:
            raise _fallback(origin, runtime, f"{_CPU} would run some or all of it") from error
        raise DeployError(f"{origin}: not a model that onnxruntime runs ({reason})", 65) from error
    runs = session.get_providers()
    # A GPU's session lists the CPU behind it, to which the option above leaves nothing.
    if runs[0] != asked or (asked == _CPU and len(runs) > 1):
        raise _fallback(origin, runtime, f"{', '.join(runs)} runs")
    return session


def _provider_options(runtime: str, precision: Precision) -> dict[str, str]:
    if runtime != "ort-tensorrt":
        return {}
    return {
        # An engine from the cache might be that of another graph or version.
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
        # TensorRT runs a graph's reduced precision only where it is also allowed to.
        "trt_int8_enable": str(int(precision == "int8")),
        "trt_fp16_enable": str(int(precision == "fp16")),
    }


def _fallback(origin: str, runtime: str, instead: str) -> DeployError:
    available = ", ".join(onnxruntime.get_available_providers())
    return DeployError(
        f"{origin}: asked for {PROVIDERS[runtime]}, {instead}; this onnxruntime has {available}; "
        f"type: pip install {_PACKAGES[runtime]} (and see `advprune doctor`)",
        69,
    )


def _end(end: onnxruntime.NodeArg) -> forms.End:
    kind, sizes = str(end.type), [size if isinstance(size, int) else None for size in end.shape]
    return {"tensor(float)": "float32", "tensor(uint8)": "uint8"}.get(kind, kind), sizes
