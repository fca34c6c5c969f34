"""`cuda.bindings.runtime` on a machine without a GPU: the device's memory is host memory.

Every copy stays within a buffer that was allocated, and everything runs on the one stream that
was made, or the call gives the error that CUDA would give.
"""

import ctypes
import itertools
import types
from enum import IntEnum
from typing import Any


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


_OK = cudaError_t.cudaSuccess
_WRONG = cudaError_t.cudaErrorInvalidValue


class HostCuda(types.ModuleType):
    """One GPU with a name and compute capability; `fails` names a call that gives an error."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamNonBlocking = 1

    def __init__(self, name: str = "Test GPU", capability: tuple[int, int] = (8, 7)) -> None:
        super().__init__("cuda.bindings.runtime")
        major, minor = capability
        self._properties = types.SimpleNamespace(name=name.encode(), major=major, minor=minor)
        self.buffers: dict[int, Any] = {}
        self.streams: set[int] = set()
        self._handles = itertools.count(77)
        self.current: list[int] = []
        self.fails: str | None = None
        self.waited = 0

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[cudaError_t, bytes]:
        return _OK, error.name.encode()

    def cudaGetDevice(self) -> tuple[cudaError_t, int | None]:
        if self.fails == "cudaGetDevice":
            return cudaError_t.cudaErrorInsufficientDriver, None
        return _OK, 0

    def cudaSetDevice(self, device: int) -> tuple[cudaError_t]:
        self.current.append(device)
        return (_OK,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[cudaError_t, Any]:
        return _OK, self._properties

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[cudaError_t, int]:
        assert flags == self.cudaStreamNonBlocking
        stream = next(self._handles)
        self.streams.add(stream)
        return _OK, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[cudaError_t]:
        self.streams.remove(stream)
        return (_OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[cudaError_t]:
        self.waited += 1
        return (_OK if stream in self.streams else _WRONG,)

    def cudaMalloc(self, size: int) -> tuple[cudaError_t, int | None]:
        if self.fails == "cudaMalloc":
            return cudaError_t.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(size)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return _OK, ctypes.addressof(buffer)

    def cudaFree(self, devPtr: int) -> tuple[cudaError_t]:
        del self.buffers[devPtr]
        return (_OK,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[cudaError_t]:
        device = dst if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else src
        if stream not in self.streams or count > len(self.buffers.get(device, b"")):
            return (_WRONG,)
        ctypes.memmove(dst, src, count)
        return (_OK,)
