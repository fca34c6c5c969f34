"""TensorRT on an NVIDIA GPU.

Opening an engine executes native code from its file, so nothing of it is handed over before its
card says that it is this file, for this TensorRT, GPU and platform. That is no signature: take
engines only from whom you would take a program.
"""

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtime import EdgeInfo, camera_pixels, check_images, check_logits
from deploy.runtimes.device_memory import NEEDS, open_device
from deploy.runtimes.engine_card import (
    REBUILD,
    TYPES,
    End,
    check_gpu,
    check_version,
    read_card,
)


class TensorRtModel:
    """An engine with one execution context and buffers for its largest batch.

    Threads may share it; they take turns.
    """

    def __init__(self, path: Path) -> None:
        """Open an engine and the card beside it.

        Args:
            path: e.g. `model.plan`, with `model.plan.json`.

        Raises:
            DeployError: 65, engine and card do not belong together, or it takes no images; 66, one
                of them is missing; 69, TensorRT or the GPU is missing; 78, built for another
                TensorRT, GPU or platform.
        """
        plan = _read(path)
        card = read_card(path, plan)
        form, shape = _form(card.input, path)
        trt = _tensorrt()
        check_version(card, path, trt.__version__)
        self._memory = open_device()
        gpu = self._memory.gpu
        check_gpu(card, path, gpu.name, gpu.compute_capability)
        self._origin, self._card = str(path), card
        self._lock = threading.Lock()
        logger, self._messages = _logger(trt)
        # TensorRT needs logger, runtime and engine for as long as there is a context.
        self._logger = logger
        self._runtime, self._engine = self._deserialize(trt, plan)
        self._check_ends(trt)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("no room for an execution context")
        self._type, self._answer = np.dtype(card.input.type), np.dtype(card.output.type)
        classes = card.output.shape[-1]
        size = card.max_batch * int(np.prod(shape)) * self._type.itemsize
        self._in = self._memory.allocate(size)
        self._out = self._memory.allocate(card.max_batch * classes * self._answer.itemsize)
        for end, address in ((card.input, self._in), (card.output, self._out)):
            if not self._context.set_tensor_address(end.name, address):
                raise self._failure(f"no address taken for {end.name!r}")
        self.info = EdgeInfo(
            runtime="tensorrt",
            precision=card.precision,
            device=f"cuda:{gpu.index} {gpu.name}",
            providers=(f"TensorRT {trt.__version__}",),
            sha256=card.sha256,
            input=form,
            shape=shape,
            classes=classes,
        )

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images, see `EdgeModel.predict`.

        Raises:
            DeployError: also 69, the GPU does not do it.
        """
        check_images(images, self.info.shape)
        step = self._card.max_batch
        with self._lock:
            self._memory.activate()
            chunks = [self._run(images[i : i + step]) for i in range(0, len(images), step)]
        logits = np.concatenate(chunks).astype(np.float32, copy=False)
        check_logits(logits, self._origin)
        return logits

    def _run(self, images: NDArray[np.float32]) -> NDArray[Any]:
        pixels = camera_pixels(images) if self._type == np.uint8 else images
        feed = np.ascontiguousarray(pixels, self._type)
        logits = np.empty((len(images), self.info.classes), self._answer)
        if not self._context.set_input_shape(self._card.input.name, feed.shape):
            raise self._failure(f"batch of {feed.shape} refused")
        self._memory.copy_in(self._in, feed)
        started = self._context.execute_async_v3(self._memory.stream)
        if started:
            self._memory.copy_out(self._out, logits)
        # Also where it did not start: the array must outlive its copy.
        self._memory.synchronise()
        if not started:
            raise self._failure("execution failed")
        return logits

    def _deserialize(self, trt: Any, plan: bytes) -> tuple[Any, Any]:
        try:
            runtime = trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:
            raise self._failure(f"TensorRT {trt.__version__} does not start") from error
        # Such an engine brings a runtime along, which is host code.
        if self._card.version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = self._reason() or " (no reason logged)"
            raise DeployError(f"{self._origin}: TensorRT refuses it{reason}; {REBUILD}", 78)
        return runtime, engine

    def _check_ends(self, trt: Any) -> None:
        """Buffers are as large as the card says: an engine that disagrees would write past them."""
        found, card = _ends(trt, self._engine), self._card
        if found != (card.input, card.output, card.max_batch):
            raise DeployError(f"{self._origin}: {found} differs from its card; {REBUILD}", 65)

    def _failure(self, what: str) -> DeployError:
        """A refusal by TensorRT or the GPU."""
        gpu = self._memory.gpu.name
        return DeployError(f"{self._origin}: {what} on {gpu}{self._reason()}; {NEEDS}", 69)

    def _reason(self) -> str:
        """What was logged since the last time, in brackets."""
        reason = "; ".join(self._messages)
        self._messages.clear()
        return f" ({reason})" if reason else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeployError(f"{path}: cannot be read ({error.strerror}); {REBUILD}", 66) from error


def _form(end: End, path: Path) -> tuple[str, tuple[int, int, int]]:
    """What the engine takes, and (C, H, W) of one image."""
    if len(end.shape) == 4 and end.shape[0] == -1 and min(end.shape[1:]) > 0:
        a, b, c = end.shape[1:]
        if end.type == "uint8":
            return "uint8 NHWC", (c, a, b)
        if end.type in ("float16", "float32"):
            return f"{end.type} NCHW", (a, b, c)
    raise DeployError(
        f"{path}: takes {end.type} {end.shape}; need float16 or float32 (batch, C, H, W) or uint8 "
        f"(batch, H, W, C) of fixed size and free batch; {REBUILD}",
        65,
    )


def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise DeployError(f"tensorrt cannot be imported ({error}); {NEEDS}", 69) from error


def _logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors for our messages and prints nothing."""
    messages: list[str] = []

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Errors(), messages


def _ends(trt: Any, engine: Any) -> tuple[End | None, End | None, int]:
    """Input, output and largest batch as the engine itself has them."""
    kinds = (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.UINT8)
    types = dict(zip(kinds, TYPES, strict=True))
    found: dict[Any, End] = {}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        kind = types.get(engine.get_tensor_dtype(name), "another type")
        end = End(name, tuple(engine.get_tensor_shape(name)), kind)
        found[engine.get_tensor_mode(name)] = end
    entry, result = found.get(trt.TensorIOMode.INPUT), found.get(trt.TensorIOMode.OUTPUT)
    if entry is None or len(names) != 2:
        return entry, result, 0
    (_, _, largest) = engine.get_tensor_profile_shape(entry.name, 0)
    return entry, result, largest[0]
