"""What layers read while a network answers: its images, then its hidden activations."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from advprune.models import weighted


@contextmanager
def read(net: nn.Module) -> Iterator[list[Tensor]]:
    """What convolutions and linear layers read in calls of `net` inside, in that order.

    With gradients; what several layers read is there once. Nothing stays on the network afterwards.
    """
    found: list[Tensor] = []

    def tap(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not any(each is inputs[0] for each in found):
            found.append(inputs[0])

    hooks = [layer.register_forward_pre_hook(tap) for layer in weighted(net).values()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
