"""Buffers and a stream on one GPU, for engines that know addresses and nothing else.

Two packages can give them: cuda-python, which is small, and torch, which a machine that trains has
anyway. A device needs only one of the two, and the small one is taken where both are.
"""

import importlib
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from deploy.errors import DeployError

NEEDS = "engines need an NVIDIA GPU, its driver, and: pip install 'tensorrt>=10.3' cuda-python"


@dataclass(frozen=True)
class Gpu:
    """One GPU as CUDA describes it; `compute_capability` is "8.7", say."""

    index: int
    name: str
    compute_capability: str


class DeviceMemory(Protocol):
    """Buffers on one GPU and the order in which work on them is done.

    Everything is ordered by one stream, and nothing is waited for except in `synchronise`: until
    then an array that was handed in must stay as it is, and one to be filled must not be read.
    Any call raises DeployError 69 if CUDA refuses it.
    """

    @property
    def gpu(self) -> Gpu: ...

    @property
    def stream(self) -> int:
        """Handle of a stream that is not the default one, which would wait for all others."""
        ...

    def activate(self) -> None:
        """Make the GPU the current one of the calling thread, as launching work demands."""
        ...

    def allocate(self, size: int) -> int:
        """Address of `size` bytes, kept as long as this object is."""
        ...

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """From a contiguous array to the GPU."""
        ...

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        """From the GPU into a contiguous array."""
        ...

    def synchronise(self) -> None:
        """Wait until all that was asked has been done."""
        ...


def open_device() -> DeviceMemory:
    """Memory on the GPU that is current in this thread; CUDA_VISIBLE_DEVICES chooses another.

    Raises:
        DeployError: 69, there is no GPU, or no package to reach it with.
    """
    try:
        return CudaMemory(importlib.import_module("cuda.bindings.runtime"))
    except (ImportError, OSError) as no_cuda:
        try:
            # By name: this file must not need torch, only take it where nothing smaller is.
            return importlib.import_module("deploy.runtimes.torch_memory").TorchMemory()
        except (ImportError, OSError):
            reason = f"neither cuda-python nor torch can be imported ({no_cuda})"
            raise DeployError(f"gpu: {reason}; {NEEDS}", 69) from no_cuda


class CudaMemory:
    """Memory through cuda-python, see `DeviceMemory`."""

    def __init__(self, cuda: Any) -> None:
        """Open the current GPU.

        Args:
            cuda: the module `cuda.bindings.runtime`.
        """
        self._cuda = cuda
        index = self._call("cudaGetDevice")
        properties = self._call("cudaGetDeviceProperties", index)
        capability = f"{properties.major}.{properties.minor}"
        self.gpu = Gpu(index, properties.name.decode(), capability)
        stream = self._call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        self.stream = int(stream)
        self._addresses: list[int] = []
        release = weakref.finalize(self, _release, cuda, stream, self._addresses)
        release.atexit = False  # CUDA may be gone by then, and the driver frees what is left

    def activate(self) -> None:
        self._call("cudaSetDevice", self.gpu.index)

    def allocate(self, size: int) -> int:
        address = int(self._call("cudaMalloc", size))
        self._addresses.append(address)
        return address

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = array.ctypes.data
        self._call("cudaMemcpyAsync", address, source, array.nbytes, kind, self.stream)

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = array.ctypes.data
        self._call("cudaMemcpyAsync", target, address, array.nbytes, kind, self.stream)

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The value of a CUDA call; the package hands errors back instead of raising them."""
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            reason = self._cuda.cudaGetErrorString(error)[1].decode()
            raise DeployError(f"gpu: {name} failed ({reason}); {NEEDS}", 69)
        return values[0] if values else None


def _release(cuda: Any, stream: Any, addresses: list[int]) -> None:
    for address in addresses:
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)
