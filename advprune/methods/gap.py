"""GAP: greedy adversarial pruning by the signed gradient of the loss (Weiss et al. 2022).

Equation 4: s(theta_n) = sum over (x, y) of -dL(theta, x_adv, y) / dtheta_n, over the training set.
The lowest s go: weights along which the adversarial loss would rise the most. The paper prunes a
naturally trained network, fine-tunes it naturally, and asks for resistance to attacks that are
transferred from the unpruned network; it claims none against attacks on the network itself.

The released code computes something else, kept here as `score=released`: batch norm by the batch,
mean losses summed over batches, the model's own predictions as labels of the attack, and, since
the attack's backward passes also reach the weights and nothing clears them, the gradients of every
attack step on top of the last one. Its layer-wise variant removes the largest |g|.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.pgd import starting_point, step
from advprune.batches import Batch
from advprune.card import Card
from advprune.curvature import weight_gradients
from advprune.frozen import batch_statistics
from advprune.method import State, Task, register
from advprune.models import logits_layer, prunable
from advprune.objectives import cross_entropy_attack
from advprune.structured import StructuredMethod
from advprune.types import Masks


@register
class Gap(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="GAP",
        paper="Weiss et al., Hardening DNNs against Transfer Attacks ... (GAP), AICAS 2022",
        year=2022,
        summary="removes the weights with the highest positive gradient of the adversarial loss",
        equations=(
            "g = sum over the training images of dCE(net(x_adv), y) / dtheta, x_adv by PGD",
            "global: the largest signed g of all layers go; uniform: the largest of each layer",
            "the logits layer stays whole; budget as sparsity or as compression = all parameters / "
            "parameters left",
            "measured as: accuracy clean, under attacks on itself, and under transfer from the "
            "unpruned network (`transfer` in the report; --set verify.split=train for the paper's "
            "training images)",
        ),
        departures=(
            "the attack stays in the pixel box (the released one attacks normalised values, about "
            "2/255, without a box); images are not augmented for eq. 4",
            "of channels it is the sum of their weights' scores that is ranked; the paper prunes "
            "weights",
            "biases are not pruned, so the weights carry the whole compression; every layer keeps "
            "at least one weight",
            "score=released: the running statistics that its training mode moves are put back",
        ),
        pretraining="NT",
        finetuning="NT",
        structure="US+S",
        locality="L, G",
        criterion="HGM",
    )
    allocation: Literal["global", "uniform"] = Field(
        default="global", description="one order for the network, or the same density everywhere"
    )
    score: Literal["eq4", "released"] = Field(
        default="eq4", description="the paper's equation 4, or what the released code computes"
    )

    @property
    def augmented(self) -> bool:
        """The released loader augments; equation 4 sums over the images themselves."""
        return self.score == "released"

    def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        if self.score == "released":
            return accumulated_gradients(net, batch, task)
        return signed_gradients(net, batch, task)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units = self.units(net, task)
        scores = units.pool({name: -state[f"scores/{name}"] for name in prunable(net)})
        if self.score == "released" and self.allocation == "uniform":
            scores = {name: -score.abs() for name, score in scores.items()}
        kept = units.counts(self.allocation, scores, self.sparsity, dense={logits_layer(net)})
        return units.select(scores, kept)


def signed_gradients(net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
    """The summed gradient of the cross-entropy at adversarial images, in eval mode."""
    x = cross_entropy_attack(task.objective, net, batch)
    loss = F.cross_entropy(net(x), batch.labels, reduction="sum")
    return weight_gradients(loss, prunable(net))


def accumulated_gradients(net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
    """What the released code leaves in the weights' gradients after one batch."""
    threat, steps = task.objective.threat, task.objective.steps
    layers = prunable(net)
    x = starting_point(batch.images, threat, batch.random, "uniform")
    with batch_statistics(net):
        with torch.no_grad():
            predicted = net(batch.images).argmax(dim=1)
        sums = [torch.zeros_like(layer.weight) for layer in layers.values()]
        for _ in range(steps):
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(net(x), predicted)
            weights = [layer.weight for layer in layers.values()]
            ascent, *gradients = torch.autograd.grad(loss, [x, *weights], materialize_grads=True)
            sums = [total + part for total, part in zip(sums, gradients, strict=True)]
            x = step(x.detach(), ascent, batch.images, threat, 2.5 * threat.eps / steps)
        last = weight_gradients(F.cross_entropy(net(x), batch.labels), layers)
    return {name: total + last[name] for name, total in zip(layers, sums, strict=True)}
