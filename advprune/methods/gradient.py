"""Gradient pruning: a control for methods that look at the gradient of the adversarial loss.

Two definitions are in use. GAP's paper (equation 3): sum over the training images of |dL/dtheta|.
ShrinkBench (Blalock et al. 2020), which GAP's experiments ran: |theta dL/dtheta| on one minibatch
in training mode. Both on clean images; the lowest go.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from advprune.batches import Batch
from advprune.card import Card
from advprune.curvature import weight_gradients
from advprune.frozen import batch_statistics
from advprune.masking import prunable_weights
from advprune.method import State, Task, register
from advprune.models import logits_layer, prunable
from advprune.structured import StructuredMethod
from advprune.types import Masks

_GRADIENT_FLOATS = 2**26  # gradients of single images held at once: 256 MiB


@register
class Gradient(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="Gradient",
        paper="a control, as in Blalock et al., What is the State of Neural Network Pruning?",
        year=2020,
        summary="removes the weights with the smallest gradient of the clean loss",
        equations=(
            "eq3: sum over the training images of |dCE(net(x), y) / dtheta|",
            "shrinkbench: |theta dCE / dtheta| of one minibatch, batch norm by the batch",
            "the lowest go, of all layers or of each; the logits layer stays whole",
        ),
        departures=(
            "every layer keeps at least one weight; biases are not pruned",
            "of channels it is the sum of their weights' scores that is ranked",
        ),
        pretraining="NT",
        finetuning="NT",
        structure="US+S",
        locality="L, G",
        criterion="LGM",
    )
    allocation: Literal["global", "uniform"] = Field(
        default="global", description="one order for the network, or the same density everywhere"
    )
    score: Literal["eq3", "shrinkbench"] = Field(
        default="eq3", description="sum |g| over all images, or |theta g| of one minibatch"
    )

    @property
    def augmented(self) -> bool:
        return self.score == "shrinkbench"

    def batches_needed(self, count: int) -> int:
        return 1 if self.score == "shrinkbench" else count

    def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        layers = prunable(net)
        if self.score == "eq3":
            return absolute_gradients(net, list(layers), batch)
        with batch_statistics(net):
            loss = F.cross_entropy(net(batch.images), batch.labels)
            gradients = weight_gradients(loss, layers)
        weights = prunable_weights(net)
        return {name: (weights[name] * gradient).abs() for name, gradient in gradients.items()}

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units = self.units(net, task)
        scores = units.pool({name: state[f"scores/{name}"] for name in prunable(net)})
        kept = units.counts(self.allocation, scores, self.sparsity, dense={logits_layer(net)})
        return units.select(scores, kept)


@torch.no_grad()  # or the sums would hold the graph of every batch, by way of the biases
def absolute_gradients(net: nn.Module, names: list[str], batch: Batch) -> dict[str, Tensor]:
    """The sum over the images of |dL/dtheta|: gradients of single images, so that none cancel."""
    weights = {name: net.get_parameter(name).detach() for name in names}
    size = sum(weight.numel() for weight in weights.values())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(net, weights, (image[None],))
        return F.cross_entropy(logits, label[None])

    each: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for chosen in torch.arange(len(batch.labels)).split(max(1, _GRADIENT_FLOATS // size)):
        for name, gradients in each(weights, batch.images[chosen], batch.labels[chosen]).items():
            sums[name] += gradients.abs().sum(dim=0)
    return sums
