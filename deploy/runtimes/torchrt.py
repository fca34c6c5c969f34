"""A torch network as an edge model: the reference that engines are held against."""

import copy
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.runtime import EdgeInfo, Precision, check_images, check_logits, images_at_once


class TorchModel:
    """A snapshot of a network in evaluation mode; training it further does not change this one."""

    def __init__(
        self, net: nn.Module, shape: tuple[int, int, int], precision: Precision = "fp32"
    ) -> None:
        """Copy the network, on its device.

        Args:
            net: takes float32 (N, C, H, W) in [0, 1], gives logits (N, K).
            shape: (C, H, W) of one image.
            precision: "int8" for a network that simulates 8 bits.
        """
        self._net = copy.deepcopy(net).eval().requires_grad_(False)
        self._device = next((p.device for p in self._net.parameters()), torch.device("cpu"))
        with torch.inference_mode():
            classes = self._net(torch.zeros(1, *shape, device=self._device)).shape[-1]
        self.info = EdgeInfo(
            runtime="torch",
            precision=precision,
            device=str(self._device),
            providers=("torch",),
            sha256=_digest(self._net),
            input="float32 NCHW",
            shape=shape,
            classes=classes,
            threads=torch.get_num_threads(),
        )

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of images, see `EdgeModel.predict`."""
        check_images(images, self.info.shape)
        step = images_at_once(self.info.shape)
        with torch.inference_mode():
            chunks = [
                self._net(torch.tensor(images[i : i + step]).to(self._device)).float().cpu()
                for i in range(0, len(images), step)
            ]
        logits = torch.cat(chunks).numpy()
        check_logits(logits, type(self._net).__name__)
        return logits


def _digest(net: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of everything that the network stores."""
    total = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        stored = value.detach().cpu().contiguous()
        total.update(f"{name} {stored.dtype} {tuple(stored.shape)}\n".encode())
        total.update(stored.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
