"""A network on a GPU as few launches: its forward and its backward recorded as CUDA graphs.

An attack on a small network is bound by the hundreds of kernels that the host launches for every
step. A graph is one launch, on buffers that stay where they are, so weights must be changed in
place. For long trainings the network is compiled before, which fuses the kernels themselves.
"""

import warnings
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from advprune.precision import Precision, answer
from advprune.stats import macs
from advprune.types import Classifier, Images, Logits

# Compiling takes about a minute and saves about a third: it pays from some minutes of attacking,
# and those are this many floating-point operations at a third of the rate of a data-centre GPU.
WORTH_COMPILING = 4e16


class Answering(nn.Module):
    """A network that answers in float32, whatever its layers compute in."""

    def __init__(self, net: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.net = net
        self._precision: Precision = precision

    def forward(self, x: Images) -> Logits:
        return answer(self.net, x, self._precision)


def launched(net: nn.Module, images: Images, precision: Precision, asked: int) -> Classifier:
    """`net` for batches on a GPU of at most the size of this one, each image for itself.

    What cannot be compiled or recorded is said in a warning, and computed as it was before.

    Args:
        net: frozen, in eval mode; its weights may change in place.
        images: of the first batch, which is the largest.
        asked: how many images will be shown to it in all, each time with a backward pass.
    """
    answering = Answering(net, precision).eval()
    forward = cast(Callable[[Images], Logits], answering)
    if worth_compiling(answering, images, asked):
        compiled = torch.compile(answering, dynamic=False)
        if _works("compiled", lambda: _round_trip(compiled, images)):
            forward = compiled
    graphed: list[Classifier] = []

    def record() -> None:
        sample = torch.zeros_like(images).requires_grad_(True)
        graphed.append(torch.cuda.make_graphed_callables(forward, (sample,)))  # pyright: ignore
        _round_trip(graphed[0], images)

    return padded(graphed[0] if _works("recorded", record) else forward, len(images))


def worth_compiling(net: nn.Module, images: Images, asked: int) -> bool:
    """Whether so many forwards and backwards, of two operations for each multiply-add, are long."""
    return 4.0 * macs(net, tuple(images.shape[1:])) * asked >= WORTH_COMPILING  # pyright: ignore


def padded(model: Classifier, size: int) -> Classifier:
    """`model`, which takes `size` images, for batches of fewer."""

    def ask(x: Images) -> Logits:
        missing = size - len(x)
        return model(F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)))[: len(x)] if missing else model(x)

    return ask


def _round_trip(model: Classifier, images: Images) -> None:
    x = images.detach().clone().requires_grad_(True)
    torch.autograd.grad(model(x).sum(), x)


def _works(what: str, attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    # Compilers and drivers fail in their own ways, and none of them is a reason to stop.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"attack: the network cannot be {what} ({reason})", stacklevel=3)
        return False
    return True
