"""A deployed model behind one small interface, whatever engine runs it.

What the verdict is about is a file; `load` gives that file a `predict` and says what it is. Needs
numpy, the runtime, and onnx for ONNX files: they are looked at before a runtime gets them.
"""

import hashlib
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.bundle.manifest import LARGEST_FILE
from deploy.errors import DeployError

InputForm = Literal["float32 NCHW", "uint8 NHWC"]
Precision = Literal["fp32", "fp16", "int8"]
LARGEST_CHUNK = 1024  # images that an engine is given at once
_CHUNK_BYTES = 2**26


class Runtime(NamedTuple):
    """What runs files with one suffix, and the module that opens them."""

    suffix: str
    module: str


# The first that fits a file's suffix runs it where no other is asked for.
RUNTIMES: Mapping[str, Runtime] = {
    "ort": Runtime(".onnx", "deploy.runtimes.ort"),
    "ort-cuda": Runtime(".onnx", "deploy.runtimes.ort"),
    "ort-tensorrt": Runtime(".onnx", "deploy.runtimes.ort"),
    "openvino": Runtime(".onnx", "deploy.runtimes.openvino"),
    "tensorrt": Runtime(".plan", "deploy.runtimes.tensorrt"),
}


@dataclass(frozen=True)
class EdgeInfo:
    """What runs, where, and on which bytes.

    Attributes:
        runtime: "onnxruntime", "openvino", "tensorrt" or "torch".
        precision: "int8" if the graph quantises, "fp16" if its floats are halves, else "fp32".
        device: where it runs, e.g. "cpu" or "cuda:0".
        providers: what the runtime really uses, in order of preference.
        sha256: digest of the file, or of the weights of a network that has no file.
        input: what the engine itself takes; `predict` takes float32 NCHW in any case.
        shape: (C, H, W) of one image.
        classes: number of logits.
        threads: that one call may use.
        version: of the runtime, where it has one.
    """

    runtime: str
    precision: str
    device: str
    providers: tuple[str, ...]
    sha256: str
    input: str
    shape: tuple[int, int, int]
    classes: int
    threads: int = 1
    version: str = ""


class EdgeModel(Protocol):
    """An engine that turns images into logits."""

    @property
    def info(self) -> EdgeInfo: ...

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images.

        Args:
            images: float32 (N, C, H, W) in [0, 1], any N >= 1.

        Returns:
            float32 (N, K).

        Raises:
            DeployError: 65 if the images are anything else, or if a logit is not finite.
        """
        ...


def load(path: Path, threads: int = 1, runtime: str | None = None) -> EdgeModel:
    """Open a deployed file.

    Args:
        path: an `.onnx` file, any precision, either input form; or a TensorRT `.plan`.
        threads: that one call may use; more than one waits by spinning and disturbs its neighbours.
        runtime: a key of `RUNTIMES`; None is the default for the kind of file.

    Raises:
        DeployError: 66 no such file; 65 not a model that takes images and gives logits, one that
            must not be run, or not one for this runtime; 78 an ONNX file with domains, operators or
            an opset that are not known; 2 no such runtime; 69 the runtime or onnx is not installed,
            or it does not run where it was asked to.
    """
    with _opened(path) as file:
        name = runtime_for(path, runtime)
        if name != "tensorrt":
            return open_graph(_content(file, path), str(path), threads, name)
    # Runtimes are packages of their own, and a device has the one that it needs.
    from deploy.runtimes.tensorrt import TensorRtModel

    return TensorRtModel(path)


def open_graph(data: bytes, origin: str, threads: int = 1, runtime: str = "ort") -> EdgeModel:
    """Open the bytes of an ONNX file: those that were looked at are those that run.

    Args:
        data: the whole file.
        origin: its name, for messages.
        threads, runtime: see `load`.

    Raises:
        DeployError: as `load`.
    """
    guard()(data, origin)
    if runtime == "openvino":
        from deploy.runtimes.openvino import OpenVinoModel

        return OpenVinoModel(data, origin, threads)
    from deploy.runtimes.ort import OrtModel

    return OrtModel(data, origin, threads, runtime)


def guard() -> Callable[[bytes, str], None]:
    """`graph_guard.check_graph`, which needs a package that not every device has.

    Raises:
        DeployError: 69, onnx is missing.
    """
    try:
        from deploy.graph_guard import check_graph
    except ModuleNotFoundError as missing:
        raise DeployError(f"{missing.name} is missing; type: pip install onnx", 69) from missing
    return check_graph


def read_graph(path: Path) -> bytes:
    """The bytes of an ONNX file.

    Raises:
        DeployError: 66 no such file; 65 no plain file, or larger than ONNX files are.
    """
    with _opened(path) as file:
        return _content(file, path)


def _opened(path: Path) -> BinaryIO:
    try:
        # Without waiting for somebody to write into a pipe.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise DeployError(f"{path}: no such file; run the export first", 66) from error
    except OSError as error:
        raise DeployError(f"{path}: cannot be read ({error.strerror}); give a file", 66) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DeployError(f"{path}: is no plain file; give a file", 65)
    return file


def _content(file: BinaryIO, path: Path) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST_FILE:
        raise DeployError(
            f"{path}: {size} bytes, above {LARGEST_FILE}; put all weights into a smaller file", 65
        )
    data = file.read(size + 1)
    if len(data) != size:
        raise DeployError(f"{path}: changed while it was read; wait until it is written", 65)
    return data


def runtime_for(path: Path, asked: str | None) -> str:
    """The runtime that opens a file: the one asked for, or the default for its suffix.

    Raises:
        DeployError: 2 no such runtime; 65 none, or not this one, runs files with this suffix.
    """
    if asked is not None and asked not in RUNTIMES:
        raise DeployError(f"runtime {asked!r} is not known; use {', '.join(RUNTIMES)}", 2)
    fitting = [name for name, runtime in RUNTIMES.items() if runtime.suffix == path.suffix]
    if not fitting:
        known = " or ".join(dict.fromkeys(runtime.suffix for runtime in RUNTIMES.values()))
        raise DeployError(
            f"{path}: no runtime for {path.suffix or 'this'!r} files; give {known}", 65
        )
    if asked is not None and asked not in fitting:
        raise DeployError(
            f"{path}: {asked} runs {RUNTIMES[asked].suffix} files; use {', '.join(fitting)}", 65
        )
    return asked or fitting[0]


def digest(data: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def check_images(images: NDArray[np.float32], shape: tuple[int, int, int]) -> None:
    """Refuse what `predict` must not be asked: engines would answer anyhow.

    Raises:
        DeployError: 65 unless the images are float32 (N, C, H, W) in [0, 1], N >= 1.
    """
    if not isinstance(images, np.ndarray):
        raise DeployError(f"predict: need an array of float32, got {type(images).__name__}", 65)
    images = np.asarray(images)  # a mask would hide what is under it
    if images.dtype != np.float32 or images.shape[1:] != shape or not len(images):
        wanted = ", ".join(map(str, shape))
        raise DeployError(
            f"predict: need float32 (N, {wanted}), N >= 1, got {images.dtype} {images.shape}", 65
        )
    low, high = images.min(), images.max()
    # Negated so that NaN, which compares as neither, is refused.
    if not (low >= 0 and high <= 1):
        raise DeployError(
            f"predict: values span [{low:g}, {high:g}] and must be finite and lie in [0, 1]; "
            "give images before normalisation, divided by 255",
            65,
        )


def images_at_once(shape: tuple[int, int, int]) -> int:
    """How many images of (C, H, W) an engine is given in one piece, however large a request is."""
    return max(1, min(LARGEST_CHUNK, _CHUNK_BYTES // (4 * math.prod(shape))))


def camera_pixels(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Float images (N, C, H, W) as a camera gives them: uint8 (N, H, W, C), half to even."""
    pixels = np.rint(images * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def check_logits(logits: NDArray[np.float32], origin: str) -> None:
    """Refuse answers that cannot be compared: NaN is never the largest, and never wrong either.

    Raises:
        DeployError: 65 if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise DeployError(f"{origin}: gave logits that are not finite; the model is broken", 65)
