"""A stand-in for what of TensorRT runs engines, with the members that 10.3 and 11.4 share.

Any other name raises. What the bindings really have is held against the same source by
`test_tensorrt_contract.py`.
"""

import ctypes
import hashlib
import platform
import types
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorrt_builder import DataType, ILogger, Severity

SHAPE, CLASSES, LARGEST = (3, 4, 5), 4, 8
HERE = f"{platform.system()}/{platform.machine()}".lower()


class TensorIOMode(IntEnum):
    INPUT = 1
    OUTPUT = 2


NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.UINT8: np.uint8}


def logits_of(images: NDArray[Any]) -> NDArray[np.float32]:
    """What the engine computes from (N, C, H, W): the first pixels of each image."""
    return images.reshape(len(images), -1)[:, :CLASSES].astype(np.float32)


class TensorRT(types.ModuleType):
    """A strict stand-in whose one engine copies pixels into logits, and which notes every call."""

    DataType, TensorIOMode, ILogger = DataType, TensorIOMode, ILogger

    def __init__(self, version: str = "11.4.0.106") -> None:
        super().__init__("tensorrt")
        fake = self
        self.__version__ = version
        self.logger = ILogger()
        self.opened: list[tuple[bytes, bool]] = []
        self.batches: list[int] = []
        self.streams: set[int] = set()
        self.types = {"images": DataType.FLOAT, "logits": DataType.FLOAT}
        self.shapes = {"images": (-1, *SHAPE), "logits": (-1, CLASSES)}
        self.starts = self.can_open = self.can_run = self.takes_batch = True
        self.answer: Callable[[NDArray[Any]], NDArray[np.float32]] = logits_of

        class Context:
            def set_tensor_address(self, name: str, memory: int) -> bool:
                self.__dict__[name] = memory
                return name in fake.types

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                assert name == "images"
                self.shape = shape
                return fake.takes_batch and shape[0] <= LARGEST

            def execute_async_v3(self, stream_handle: int) -> bool:
                fake.streams.add(stream_handle)
                fake.batches.append(self.shape[0])
                if not fake.can_run:
                    fake.logger.log(Severity.WARNING, "chatter")
                    fake.logger.log(Severity.ERROR, "an illegal memory access")
                    return False
                images = np.empty(self.shape, NUMPY[fake.types["images"]])
                ctypes.memmove(images.ctypes.data, self.__dict__["images"], images.nbytes)
                answer = fake.answer(images).astype(NUMPY[fake.types["logits"]])
                ctypes.memmove(self.__dict__["logits"], answer.ctypes.data, answer.nbytes)
                return True

        class Engine:
            @property
            def num_io_tensors(self) -> int:
                return len(fake.shapes)

            def get_tensor_name(self, index: int) -> str:
                return [*fake.shapes][index]

            def get_tensor_mode(self, name: str) -> TensorIOMode:
                return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

            def get_tensor_dtype(self, name: str) -> DataType:
                return fake.types[name]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return fake.shapes[name]

            def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple]:
                assert (name, profile_index) == ("images", 0)
                return [(batch, *fake.shapes[name][1:]) for batch in (1, 1, LARGEST)]

            def create_execution_context(self) -> Context:
                return Context()

        class Runtime:
            __slots__ = ("engine_host_code_allowed",)

            def __init__(self, logger: ILogger) -> None:
                fake.logger, self.engine_host_code_allowed = logger, False
                if not fake.starts:
                    logger.log(Severity.ERROR, "CUDA initialization failure")
                    raise TypeError("factory function returned nullptr")

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                fake.opened.append((serialized_engine, self.engine_host_code_allowed))
                if not fake.can_open:
                    fake.logger.log(Severity.ERROR, "magic tag does not match")
                return Engine() if fake.can_open else None

        self.Runtime = Runtime


def write_engine(folder: Path, plan: bytes = b"native code", **changes: Any) -> Path:
    """An engine and its card, as the builder writes it."""
    from deploy.sealed import seal  # a script that imports this file finds nothing of the project

    card = {
        "schema": 2,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "tensorrt": "11.4.0.106",
        "gpu": "Test GPU",
        "compute_capability": "8.7",
        "platform": HERE,
        "batch": {"min": 1, "optimal": 1, "max": LARGEST},
        "version_compatible": False,
        "hardware_compatible": False,
        "input": {"name": "images", "shape": [-1, *SHAPE], "type": "float32"},
        "output": {"name": "logits", "shape": [-1, CLASSES], "type": "float32"},
        "precision": "int8",
    }
    (folder / "model.plan").write_bytes(plan)
    (folder / "model.plan.json").write_bytes(seal(card | changes))
    return folder / "model.plan"


def make_images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
