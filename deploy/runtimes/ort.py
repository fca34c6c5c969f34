"""ONNX Runtime on the CPU."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import (
    LARGEST_CHUNK,
    EdgeInfo,
    InputForm,
    Precision,
    check_images,
    check_logits,
    digest,
)

try:
    import onnxruntime
    from onnxruntime.capi import (
        onnxruntime_pybind11_state as refusals,  # pyright: ignore[reportAttributeAccessIssue]
    )
except ModuleNotFoundError as missing:
    raise DeployError("onnxruntime is missing; type: pip install onnxruntime", 69) from missing

_REFUSALS = (
    refusals.Fail,
    refusals.InvalidArgument,
    refusals.InvalidGraph,
    refusals.InvalidProtobuf,
    refusals.NoModel,
    refusals.NotImplemented,
    refusals.RuntimeException,
)
_PROVIDERS = ("CPUExecutionProvider",)
# A node's operator type as protobuf writes it: field 4, length 16, the name.
_DEQUANTIZE = b"\x22\x10DequantizeLinear"
# A graph given as bytes may name files with weights, which onnxruntime would then read relative
# to the current folder, upwards too. Nothing can lie under this path, so such a graph is refused.
_NO_FOLDER = str(Path(os.devnull, "none"))


class OrtModel:
    """An ONNX file in ONNX Runtime.

    Precision and input form are read from the graph, not from what its metadata claim: a graph
    is 8-bit if it dequantises, and it takes camera images if its input is uint8.
    """

    def __init__(self, data: bytes, origin: str, threads: int) -> None:
        """Open a graph with all its weights inside.

        Args:
            data: the whole file.
            origin: its name, for messages.
            threads: that one call may use.

        Raises:
            DeployError: 65 or 69, see `deploy.runtime.load`.
        """
        self._origin = origin
        self._session = _open(data, origin, threads)
        providers = tuple(self._session.get_providers())
        if providers != _PROVIDERS:
            raise DeployError(
                f"{origin}: asked for {_PROVIDERS}, onnxruntime uses {providers}; "
                "install a build for this device",
                69,
            )
        form, shape, classes = _ends(self._session, origin)
        precision: Precision = "int8" if _DEQUANTIZE in data else "fp32"
        self._input = self._session.get_inputs()[0].name
        self.info = EdgeInfo(
            runtime="onnxruntime",
            precision=precision,
            device="cpu",
            providers=providers,
            sha256=digest(data),
            input=form,
            shape=shape,
            classes=classes,
            threads=threads,
        )

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images, see `EdgeModel.predict`."""
        check_images(images, self.info.shape)
        chunks = [
            self._run(images[i : i + LARGEST_CHUNK]) for i in range(0, len(images), LARGEST_CHUNK)
        ]
        logits = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        check_logits(logits, self._origin)
        return logits

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = images if self.info.input == "float32 NCHW" else _camera(images)
        return np.asarray(self._session.run(None, {self._input: feed})[0], np.float32)


def _camera(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float images (N, C, H, W) as uint8 (N, H, W, C), rounding half to even."""
    pixels = np.rint(images * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _open(data: bytes, origin: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong with the file comes back as an exception
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NO_FOLDER
    )
    try:
        return onnxruntime.InferenceSession(data, options, providers=[*_PROVIDERS])
    except _REFUSALS as error:
        reason = str(error).splitlines()[0]
        raise DeployError(f"{origin}: not a model that onnxruntime runs ({reason})", 65) from error


def _ends(
    session: onnxruntime.InferenceSession, origin: str
) -> tuple[InputForm, tuple[int, int, int], int]:
    """Input form, (C, H, W) and number of classes of a graph that takes images."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    dims: Sequence[int | str] = inputs[0].shape
    if len(inputs) == len(outputs) == 1 and len(dims) == 4 and not isinstance(dims[0], int):
        a, b, c = dims[1:]
        classes = outputs[0].shape[-1]
        if isinstance(a, int) and isinstance(b, int) and isinstance(c, int):
            if inputs[0].type == "tensor(float)" and isinstance(classes, int):
                return "float32 NCHW", (a, b, c), classes
            if inputs[0].type == "tensor(uint8)" and isinstance(classes, int):
                return "uint8 NHWC", (c, a, b), classes
    raise DeployError(
        f"{origin}: takes {[(end.type, end.shape) for end in inputs]}; need one input, float32 "
        "(batch, C, H, W) or uint8 (batch, H, W, C) of fixed size and free batch",
        65,
    )
