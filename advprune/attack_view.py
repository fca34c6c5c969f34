"""The network as the attack inside training asks it: many times between two steps, never learning.

So it is brought into the cheapest form first: effective weights, batch norms folded into the
convolutions, channels-last, and in bfloat16 where the training is. Gradients are those of the
inputs alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advprune.folding import Affine, Folded, fold
from advprune.frozen import frozen
from advprune.launches import launched
from advprune.precision import Precision, answer
from advprune.types import Classifier, Images, Logits


@contextmanager
def as_it_is(net: nn.Module, precision: Precision) -> Iterator[Classifier]:
    """`net` itself, frozen for the duration, answering in this precision."""
    with frozen(net):
        yield net if precision == "fp32" else lambda x: answer(net, x, precision)


class AttackView:
    """A folded copy for a whole training, brought up to date before each attack.

    A network that cannot be folded is asked as it is.

    Args:
        precision: of its layers; logits are float32.
        asked: how many images it will be shown in all, once for every step of every attack.
    """

    def __init__(self, precision: Precision, asked: int) -> None:
        self._precision: Precision = precision
        self._asked = asked
        self._net: nn.Module | None = None
        self._folded: Folded | None = None
        self._model: Classifier | None = None

    def prepare(self, net: nn.Module, images: Images) -> None:
        """Find out whether `net` can be folded, before it learns.

        A training that goes on from a checkpoint must come to the same answer as the one before,
        so it must not ask a network that has learned since.

        Args:
            images: float32 (N, C, H, W); folding is tried on the first ones.
        """
        self._net, self._folded, self._model = net, fold(net, images[:8]), None
        if self._folded is not None and self._precision == "bf16":
            _lower(self._folded)

    @contextmanager
    def of(self, net: nn.Module, images: Images) -> Iterator[Classifier]:
        """`net` as a fixed function while this lasts; it must not change meanwhile.

        Args:
            images: the batch, float32 (N, C, H, W); the first is the largest.
        """
        if net is not self._net:
            self.prepare(net, images)
        if self._folded is None:
            with as_it_is(net, self._precision) as model:
                yield model
            return
        self._folded.follow(net)
        if self._model is None:
            self._model = self._answer
            if images.is_cuda:
                self._model = launched(self._folded, images, self._precision, self._asked)
        yield self._model

    def _answer(self, x: Images) -> Logits:
        assert self._folded is not None
        return answer(self._folded, x, self._precision)


def _lower(net: nn.Module) -> None:
    """Hold in bfloat16 what autocast would convert in every call."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Affine):
            module.to(torch.bfloat16)
