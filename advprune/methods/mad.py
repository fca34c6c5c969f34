"""MAD: mask the weights whose removal damages the adversarial loss least (Lee et al. 2022).

For each training batch, on the frozen network in eval mode:

1. x_adv by PGD on the network as it is.
2. Soft masks f(M), f = softplus, one for each weight and bias, from f(M) = 1: 20 steps of Adam
   lower the cross-entropy at x_adv, with f(M) held in [1e-4, 1]. At this minimum the first-order
   term of the loss is about zero.
3. There, true-label Fisher factors A and G (see `curvature`), and for dW = W - W f(M)

       S_ij = 1/2 G_ii dW_ij (dW A)_ij

   which is 1/2 dW (H dW) with the Hessian's blocks between output channels dropped.

Scores are averaged over batches. The lowest go: of all convolutions together, and in each row of
the layer that makes the logits.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from advprune.allocate import global_counts
from advprune.batches import Batch
from advprune.card import Card
from advprune.curvature import recorded, row_quadratic
from advprune.frozen import frozen
from advprune.masks import keep_best, keep_top, kept_count
from advprune.method import State, Task, register
from advprune.models import logits_layer, prunable
from advprune.objectives import MAD_REACH, cross_entropy_attack
from advprune.structured import StructuredMethod
from advprune.types import Images, Labels, Masks

MASK_STEPS = 20
MASK_LR = 0.1


def inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))


OPEN = inverse_softplus(1.0)
SHUT = inverse_softplus(1e-4)


@register
class Mad(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="MAD",
        paper="Lee et al., Masking Adversarial Damage, CVPR 2022",
        year=2022,
        entry="MAD",
        summary="removes the weights whose masking damages the adversarial loss least",
        equations=(
            "x_adv: PGD at the network as it is, step 2.3 eps / steps",
            "M: 20 Adam steps (lr 0.1) on CE(net with W softplus(M), x_adv), softplus(M) in "
            "[1e-4, 1], from 1",
            "S_ij = 1/2 G_ii dW_ij (dW A)_ij with dW = W - W softplus(M) and the true-label Fisher "
            "factors A, G of the masked network",
            "mean of S over the training batches; the lowest S go, of all convolutions together "
            "and in each row of the logits layer",
        ),
        departures=(
            "the matrix-free form replaces factors and row loop; grouped and dilated convolutions "
            "are right, where the released code is not",
            "of channels the sum of their weights' S is ranked; the paper prunes weights",
            "biases take part in S but are never pruned; the exact total may shift the last few "
            "weights from the head's rows to the convolutions",
            "the threat is the recipe's (the released code attacks at 0.03, not 8/255); every "
            "layer keeps at least one weight; linear layers before the last join the global order",
        ),
        structure="US+S",
        criterion="LIS",
    )
    order: Literal["signed", "abs"] = Field(
        default="signed", description="prune the lowest S, or the lowest |S|; released: signed"
    )
    delta: Literal["masked", "full"] = Field(
        default="masked",
        description="dW = W - W f(M), or W itself at the dense network (no mask optimisation)",
    )

    def assess(self, net: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        x = cross_entropy_attack(task.objective, net, batch, reach=MAD_REACH)
        own = {name: value.detach() for name, value in _own(net).items()}
        if self.delta == "masked":
            masked = {
                name: own[name] * F.softplus(mask)
                for name, mask in minimising_masks(net, own, x, batch.labels).items()
            }
            changes = {name: own[name] - masked[name] for name in own}
        else:
            masked = changes = own
        return saliency(net, masked, changes, x, batch.labels)

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units = self.units(net, task)
        scores = units.pool({name: state[f"scores/{name}"] for name in prunable(net)})
        if self.order == "abs":
            scores = {name: score.abs() for name, score in scores.items()}
        head = logits_layer(net)
        # Where the head is frozen, or alone is not, there is one order.
        if self.granularity != "weight" or not {head} < scores.keys():
            return units.select(scores, units.counts("global", scores, self.sparsity))
        per_row = kept_count(scores[head][0].numel(), self.sparsity)
        masks = {head: torch.stack([keep_top(row, per_row) for row in scores.pop(head)]).cpu()}
        total = sum(units.sizes.values())
        left = kept_count(total, self.sparsity) - int(masks[head].sum())
        masks |= keep_best(scores, global_counts(scores, left))
        return {name: masks[name] for name in units.sizes}


def minimising_masks(
    net: nn.Module, own: dict[str, Tensor], x: Images, y: Labels
) -> dict[str, Tensor]:
    """M of each weight and bias after 20 steps of Adam on CE(net with own * softplus(M), x)."""
    masks = {name: torch.full_like(value, OPEN).requires_grad_() for name, value in own.items()}
    adam = torch.optim.Adam(masks.values(), lr=MASK_LR)
    with frozen(net):
        for _ in range(MASK_STEPS):
            weights = {name: own[name] * F.softplus(mask) for name, mask in masks.items()}
            loss = F.cross_entropy(functional_call(net, weights, (x,)), y)
            gradients = torch.autograd.grad(loss, list(masks.values()), materialize_grads=True)
            for mask, gradient in zip(masks.values(), gradients, strict=True):
                mask.grad = gradient
            adam.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(SHUT, OPEN)
    return {name: mask.detach() for name, mask in masks.items()}


def saliency(
    net: nn.Module, weights: dict[str, Tensor], changes: dict[str, Tensor], x: Images, y: Labels
) -> dict[str, Tensor]:
    """S of every prunable weight, at the network with `weights`, for removing `changes`."""
    layers = prunable(net)
    with frozen(net), recorded(layers) as records:
        loss = F.cross_entropy(functional_call(net, _leaves(weights), (x,)), y)
        outputs = [output for record in records.values() for output in record.outputs]
        gradients = iter(torch.autograd.grad(loss, outputs, materialize_grads=True))
    scores = {}
    for name, layer in layers.items():
        bias = changes.get(name.removesuffix("weight") + "bias")
        terms = [
            row_quadratic(layer, a, next(gradients), changes[name], bias)[0]
            for a in records[name].inputs
        ]
        scores[name] = torch.stack(terms).sum(dim=0) if terms else torch.zeros_like(changes[name])
    return scores


def _own(net: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of the prunable layers, by their names in the network."""
    found: dict[str, Tensor] = {}
    for name, layer in prunable(net).items():
        found[name] = layer.weight
        if layer.bias is not None:
            found[name.removesuffix("weight") + "bias"] = layer.bias
    return found


def _leaves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that require a gradient, so that the outputs of their layers belong to a graph."""
    return {name: value.detach().requires_grad_() for name, value in weights.items()}
