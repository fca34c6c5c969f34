"""BNAP: what counts is a weight times the scaling factor of its batch norm (Wei et al. 2021).

Batch norm multiplies the output of filter c by gamma_c, so that a weight of that filter acts with
gamma_c w, which the authors call the effective weight. Weights go in the order of |gamma_c w|,
filters in the order of |gamma_c|, over the whole network.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.card import Card
from advprune.channel_units import ChannelUnits
from advprune.channels import ChannelGroup
from advprune.masking import prunable_weights
from advprune.method import State, Task, register
from advprune.norms import norms_of, scaling
from advprune.structured import AS_ONE, StructuredMethod
from advprune.types import Masks


@register
class Bnap(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="BNAP",
        paper="Wei, Zhu & Xia, Batch Normalization Assisted Adversarial Pruning, IJCNN 2021",
        year=2021,
        entry="BNAP",
        summary="removes the weights that are smallest once their batch norm has scaled them",
        equations=(
            "effective weight: gamma_c w, gamma_c the scaling factor of the batch norm that reads "
            "filter c; 1 for a layer that none reads",
            "weight: the lowest |gamma_c w| of all layers go",
            "filter: the lowest |gamma_c| of all layers go, the mean over the batch norms on the "
            "way of channels that go together",
        ),
        departures=(
            "built from the abstract, the only public text: it names the scaling factor and the "
            "weight's magnitude, and leaves open whether the running deviation divides them "
            "(it does not here), how often one prunes (once here; the benchmark says both), and "
            "how structured and unstructured pruning follow each other (one of the two here)",
            "its lottery tickets, which start again from the first weights, are left out",
            "channels without a batch norm count as 1, and among equals the first stay; every "
            "layer keeps at least one weight, widths of channels are rounded",
        ),
        structure="US+S",
        locality="G",
        criterion="LIS",
    )
    granularity: Literal["weight", "filter"] = Field(  # pyright: ignore
        default="weight", description=AS_ONE
    )

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units = self.units(net, task)
        if isinstance(units, ChannelUnits):
            scores = {group.name: channel_scaling(net, group) for group in units.groups}
        else:
            scores = effective_weights(net, task.shape)
        return units.select(scores, units.counts("global", scores, self.sparsity))


def effective_weights(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """|gamma_c w| of every prunable weight."""
    norms = norms_of(net, shape)
    found: dict[str, Tensor] = {}
    for name, weight in prunable_weights(net).items():
        gamma = scaling(norms.get(name), len(weight)).to(weight)
        found[name] = weight.abs() * gamma.view(-1, *[1] * (weight.dim() - 1))
    return found


def channel_scaling(net: nn.Module, group: ChannelGroup) -> Tensor:
    """|gamma| of each channel of a group, on the CPU."""
    layers = dict(net.named_modules())
    factors = []
    for slot in group.norms:
        gamma = scaling(layers[slot.layer], int(slot.index.max()) + 1).cpu()
        factors.append(gamma[slot.index].mean(dim=1))
    return torch.stack(factors).mean(dim=0) if factors else torch.ones(group.width)
