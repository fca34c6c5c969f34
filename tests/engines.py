"""Networks behind the interface of exported engines, faithful ones and others."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Info:
    input: str = "float32 NCHW"
    precision: str = "fp32"


class Engine:
    """A network behind the interface of an exported one, and a record of what it was shown."""

    def __init__(self, net: nn.Module, info: Info | None = None) -> None:
        self.net, self.info = net, info or Info()
        self.shown: list[NDArray[np.float32]] = []

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        assert images.dtype == np.float32
        self.shown.append(images.copy())
        with torch.no_grad():
            return self.answer(self.net(torch.from_numpy(images))).numpy()

    def answer(self, logits: Tensor) -> Tensor:
        return logits


class Constant(Engine):
    def answer(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits)


class Coarse(Engine):
    """Logits on a grid so wide that margins are equal over whole regions."""

    def answer(self, logits: Tensor) -> Tensor:
        return (logits / 4).round() * 4


class Noisy(Engine):
    def __init__(self, net: nn.Module, noise: float) -> None:
        super().__init__(net)
        self.noise = noise
        self.generator = torch.Generator().manual_seed(0)

    def answer(self, logits: Tensor) -> Tensor:
        return logits + self.noise * torch.randn(logits.shape, generator=self.generator)


class NotANumber(Engine):
    def answer(self, logits: Tensor) -> Tensor:
        return logits * float("nan")
