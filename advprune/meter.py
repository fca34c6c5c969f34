"""The losses of an epoch, summed where they are computed, and whether all numbers are finite."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from advprune.errors import Refused
from advprune.objectives import Loss

_NAMED_IN_A_MESSAGE = 3


class Meter:
    """Adds up losses and right answers without making a GPU wait for the host.

    What a step came to is read when it has arrived: at once on the CPU; on a GPU when the next one
    is on its way, so that a number that is not finite is found a step late, before it is saved.

    Args:
        net: what is trained; its weights and statistics are looked at after every step.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self._net = net
        self._epoch, self._batch, self._images = 0, 0, 0
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._loss = torch.full((), math.nan)
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None
        self.latest = math.nan

    def begin(self, epoch: int) -> None:
        """Forget what was; epochs are counted from one, for messages."""
        self._epoch, self._batch, self._images = epoch, 0, 0
        self._sums.zero_()

    def add(self, loss: Loss, images: int) -> None:
        """Count the loss of a batch of so many images.

        Raises:
            Refused: it is infinite or not a number, as far as that is known without waiting.
        """
        self._loss = loss.value.detach()
        self._sums += torch.stack([self._loss.double() * images, loss.correct.double()])
        self._images += images
        self._batch += 1
        if self._loss.device.type != "cuda":
            self._check_loss(float(self._loss))

    def stepped(self) -> None:
        """Look at what the step that followed has made of the network.

        Raises:
            Refused: a loss that has arrived, or a weight or a running statistic after it, is
                infinite or not a number.
        """
        device = self._loss.device
        kinds = self._net.parameters(), self._net.buffers()
        found = torch.stack([self._loss.float(), *(_largest(kind, device) for kind in kinds)])
        if device.type == "cuda":
            self._read()
            there = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            there.copy_(found, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent = there, event
        else:
            self._found(found)

    def totals(self) -> dict[str, float]:
        """Mean loss, and share of right answers, over all images so far.

        Raises:
            Refused: as `stepped`, for the last step.
        """
        self._read()
        loss, correct = (self._sums / self._images).tolist()
        return {"loss": loss, "train": correct}

    def pack(self) -> dict[str, Tensor]:
        """Raises Refused as `stepped` does: nothing is saved that is not finite."""
        self._read()
        counts = torch.tensor([self._epoch, self._batch, self._images])
        return {"sums": self._sums, "counts": counts}

    def unpack(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._sums.copy_(tensors["sums"])
        self._epoch, self._batch, self._images = tensors["counts"].tolist()

    def _read(self) -> None:
        if self._sent is not None:
            found, event = self._sent
            self._sent = None
            event.synchronize()
            self._found(found)

    def _found(self, found: Tensor) -> None:
        loss, weights, statistics = found.tolist()
        self._check_loss(loss)
        if not math.isfinite(weights):
            # A gradient that is not finite makes such a weight, and the gradients are still there.
            named = dict(self._net.named_parameters())
            gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
            if bad := _bad_of(gradients):
                raise self._refusal(f"the gradient of {bad} is not finite")
            raise self._refusal(f"the weight {_bad_of(named)} is not finite")
        if not math.isfinite(statistics):
            bad = _bad_of(dict(self._net.named_buffers()))
            raise self._refusal(f"the running statistic {bad} is not finite")

    def _check_loss(self, loss: float) -> None:
        self.latest = loss
        if not math.isfinite(loss):
            raise self._refusal(f"the loss is {loss}")

    def _refusal(self, what: str) -> Refused:
        return Refused(
            f"training: {what} in epoch {self._epoch}, batch {self._batch}; lower the learning "
            "rate (--set STAGE.lr=X)"
        )


@torch.no_grad()
def _largest(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """The largest magnitude, float32 scalar; infinite or NaN if any number is."""
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return get_total_norm(floats, math.inf).float() if floats else torch.zeros((), device=device)


def _bad_of(tensors: Mapping[str, Tensor]) -> str:
    """The names of the first tensors that are not finite, and how many others are not."""
    bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
    named = ", ".join(bad[:_NAMED_IN_A_MESSAGE])
    rest = len(bad) - _NAMED_IN_A_MESSAGE
    return f"{named} and {rest} more" if rest > 0 else named
