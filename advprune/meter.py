"""The losses of an epoch, summed where they are computed."""

import math

import torch
from torch import Tensor

from advprune.errors import Refused
from advprune.objectives import Loss


class Meter:
    """Adds up losses and right answers without making a GPU wait for the host.

    Each loss is read when it has arrived: at once on the CPU; on a GPU when the next one is on its
    way, so that a loss that is not finite is found a step late, before anything is saved.

    Args:
        epoch: counted from one, for messages.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self._epoch = epoch
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._images = 0
        self._batch = 0
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None
        self.latest = math.nan

    def add(self, loss: Loss, images: int) -> None:
        """Count the loss of a batch of so many images.

        Raises:
            Refused: a loss that has arrived is infinite or not a number.
        """
        value = loss.value.detach()
        self._sums += torch.stack([value.double() * images, loss.correct.double()])
        self._images += images
        if value.device.type == "cuda":
            self._read()
            there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            there.copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent = there, event
        else:
            self._found(float(value))

    def totals(self) -> dict[str, float]:
        """Mean loss, and share of right answers, over all images so far.

        Raises:
            Refused: as `add`, for the last loss.
        """
        self._read()
        loss, correct = (self._sums / self._images).tolist()
        return {"loss": loss, "train": correct}

    def _read(self) -> None:
        if self._sent is not None:
            value, event = self._sent
            self._sent = None
            event.synchronize()
            self._found(float(value))

    def _found(self, value: float) -> None:
        self._batch += 1
        self.latest = value
        if not math.isfinite(value):
            raise Refused(
                f"training: the loss is {value} in epoch {self._epoch}, batch {self._batch}; "
                "lower the learning rate (--set STAGE.lr=X)"
            )
