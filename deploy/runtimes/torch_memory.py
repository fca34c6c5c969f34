"""Buffers on a GPU through torch, where cuda-python is absent; see `DeviceMemory`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.errors import DeployError
from deploy.runtimes.device_memory import NEEDS, Gpu


class TorchMemory:
    """Memory that torch allocates, on a stream that torch made."""

    def __init__(self) -> None:
        """Open the current GPU.

        Raises:
            DeployError: 69, there is none, or this torch was built without CUDA.
        """
        if not torch.cuda.is_available():
            raise DeployError(f"gpu: torch {torch.__version__} finds none; {NEEDS}", 69)
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        self.gpu = Gpu(index, properties.name, f"{properties.major}.{properties.minor}")
        self._stream = torch.cuda.Stream(index)
        self.stream = int(self._stream.cuda_stream)
        self._buffers: dict[int, torch.Tensor] = {}

    def activate(self) -> None:
        torch.cuda.set_device(self.gpu.index)

    def allocate(self, size: int) -> int:
        try:
            # On our stream, or torch could hand out a block that another stream still works on.
            with torch.cuda.stream(self._stream):
                buffer = torch.empty(size, dtype=torch.uint8, device=f"cuda:{self.gpu.index}")
        except torch.cuda.OutOfMemoryError as error:
            raise DeployError(f"gpu: no {size:,} bytes free on {self.gpu.name}", 69) from error
        self._buffers[buffer.data_ptr()] = buffer
        return buffer.data_ptr()

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        # A copy, since torch warns of arrays that cannot be written to.
        source = torch.tensor(array.reshape(-1).view(np.uint8))
        with torch.cuda.stream(self._stream):
            self._buffers[address][: array.nbytes].copy_(source)

    def copy_out(self, address: int, array: NDArray[Any]) -> None:
        target = torch.from_numpy(array.reshape(-1).view(np.uint8))
        with torch.cuda.stream(self._stream):
            target.copy_(self._buffers[address][: array.nbytes])

    def synchronise(self) -> None:
        self._stream.synchronize()
