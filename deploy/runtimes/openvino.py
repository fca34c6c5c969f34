"""OpenVINO on the CPU: ONNX files, among them 8-bit ones in the form that TensorRT takes."""

import importlib
import sys
import threading
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import EdgeInfo, digest
from deploy.runtimes import forms

_TELEMETRY = "openvino_telemetry"
# What moves no data and computes nothing.
_IDLE = ("Const", "Input", "Output")


def _silently_imported() -> Any:
    """The package, kept from sending a message over the network when it is imported.

    It does that unless the module that sends is missing; None in its place makes it so.
    """
    sender = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module("openvino")
    except ImportError as missing:
        raise DeployError("openvino is missing; type: pip install openvino", 69) from missing
    finally:
        del sys.modules[_TELEMETRY]
        if sender is not None:
            sys.modules[_TELEMETRY] = sender


openvino = _silently_imported()


class OpenVinoModel:
    """An ONNX file in OpenVINO.

    Compiled for one image when it is opened and for batches of any size when the first one comes:
    a single image takes up to a fifth longer where the size of the batch is left open, a large
    batch does not. In 8 bits the two may round differently, as any two engines do.

    Threads may share it; they take turns.
    """

    def __init__(self, data: bytes, origin: str, threads: int) -> None:
        """Open a graph with all its weights inside.

        Args:
            data: the whole file.
            origin: its name, for messages.
            threads: that one call may use.

        Raises:
            DeployError: 65, see `deploy.runtime.load`.
        """
        if forms.names_files(data):
            raise DeployError(f"{origin}: names files with weights; put all weights inside", 65)
        self._origin, self._threads = origin, threads
        self._lock = threading.Lock()
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(data, b"")
            inputs, outputs = [*map(_end, self._model.inputs)], [*map(_end, self._model.outputs)]
            form, shape, classes = forms.ends(inputs, outputs, origin)
            single = self._model.clone()
            single.reshape([1, *inputs[0][1][1:]])
            self._compiled = self._compile(single)
        except RuntimeError as error:
            # The first lines say where in OpenVINO's sources it was found.
            reason = str(error).strip().splitlines()[-1]
            raise DeployError(f"{origin}: not a model that openvino runs ({reason})", 65) from error
        self._single = self._compiled.create_infer_request()
        self.info = EdgeInfo(
            runtime="openvino",
            precision=forms.precision_of(data),
            device="cpu",
            providers=tuple(self._compiled.get_property("EXECUTION_DEVICES")),
            sha256=digest(data),
            input=form,
            shape=shape,
            classes=classes,
            threads=self._compiled.get_property("INFERENCE_NUM_THREADS"),
            version=openvino.__version__.split("-")[0],
        )

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images, see `EdgeModel.predict`."""
        return forms.predict(self._run, images, self.info, self._origin)

    def primitives(self) -> dict[str, int]:
        """How many primitives OpenVINO runs for one image, by type and precision.

        For example {"Convolution u8": 7, "FullyConnected i8": 1}: a graph that only claims 8 bits
        has "Convolution f32" here.
        """
        executed = [op.get_rt_info() for op in self._compiled.get_runtime_model().get_ops()]
        kinds = [(_text(op, "layerType"), _text(op, "runtimePrecision")) for op in executed]
        counts = Counter(f"{kind} {precision}" for kind, precision in kinds if kind not in _IDLE)
        return dict(sorted(counts.items()))

    def _run(self, batch: NDArray) -> NDArray:
        # A request has one place for its input; a second thread would be told that it is busy.
        with self._lock:
            request = self._single if len(batch) == 1 else self._batches
            try:
                return request.infer({0: batch})[0]
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise DeployError(f"{self._origin}: cannot be run ({reason})", 65) from error

    @cached_property
    def _batches(self) -> Any:
        return self._compile(self._model).create_infer_request()

    def _compile(self, model: Any) -> Any:
        # Left to itself it computes floats in bfloat16 where the processor can.
        settings = {"INFERENCE_NUM_THREADS": self._threads, "INFERENCE_PRECISION_HINT": "f32"}
        return self._core.compile_model(model, "CPU", settings)


def _end(end: Any) -> forms.End:
    sizes = [None if size.is_dynamic else size.get_length() for size in end.get_partial_shape()]
    return end.get_element_type().to_dtype().name, sizes


def _text(info: Any, key: str) -> str:
    return info[key].astype(str)
