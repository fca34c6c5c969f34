"""Grouped kernels: what one input channel has in each filter of a group of filters.

    kernel    (filters of one group, one input channel, kh, kw) of a convolution

The filters of a layer are dealt out to groups of one size. A group that has lost the same number of
input channels everywhere could be rewritten as one group of a grouped convolution.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.errors import BadData
from advprune.masking import prunable_weights
from advprune.masks import keep_best
from advprune.models import prunable, weighted
from advprune.types import Masks
from advprune.units import Counts, Units, refuse_weight_rules

MOST_GROUPS = 8


class GroupedKernels(Units):
    """The grouped kernels of every ungrouped convolution but the first.

    Other layers stay whole, and are not counted.

    Args:
        net: without parametrisations.
        groups: int64 (G, filters of a group) for each layer of `grouped(net)`: who is in which.

    Raises:
        BadData: there is no such convolution.
    """

    def __init__(self, net: nn.Module, groups: Mapping[str, Tensor]) -> None:
        if not groups:
            raise BadData(
                "--granularity kernel: the method keeps every layer of this network; it prunes "
                "convolutions behind the first; use another method"
            )
        self.groups = {name: members.cpu() for name, members in groups.items()}
        self._shapes = {name: weight.shape for name, weight in prunable_weights(net).items()}
        self.sizes = {name: len(members) * self.inputs(name) for name, members in groups.items()}

    def inputs(self, name: str) -> int:
        return self._shapes[name][1]

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: values[name][members.to(values[name].device)].flatten(3).sum(dim=(1, 3))
            for name, members in self.groups.items()
        }

    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        refuse_weight_rules(rule, "kernel")
        return allocate(rule, scores, sparsity, scores=scores, dense=dense)

    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        return self.masks(keep_best(scores, counts))

    def masks(self, kept: Mapping[str, Tensor]) -> Masks:
        """bool (G, inputs) for each layer -> one entry for each weight, on the CPU."""
        masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self._shapes.items()}
        for name, members in self.groups.items():
            masks[name][members] &= kept[name].cpu()[:, None, :, None, None]
        return masks

    def kept(self, masks: Masks) -> Counts:
        found: Counts = {}
        for name, members in self.groups.items():
            parts = masks[name][members].flatten(3).movedim(2, 1).flatten(2)
            if not torch.equal(parts.any(dim=2), parts.all(dim=2)):
                raise BadData(f"prune: {name} keeps parts of grouped kernels; a method's defect")
            found[name] = int(parts.all(dim=2).sum())
        return found


def grouped(net: nn.Module) -> list[str]:
    """The weights that have grouped kernels: of ungrouped convolutions, but not of the first."""
    first = next(iter(weighted(net)))
    layers = prunable(net).items()
    return [n for n, it in layers if n != first and isinstance(it, nn.Conv2d) and it.groups == 1]


def group_count(filters: int) -> int:
    """How many groups of one size: as many as divide the filters, eight at most."""
    return next(count for count in range(MOST_GROUPS, 0, -1) if filters % count == 0)


def snake(order: Tensor, groups: int) -> Tensor:
    """Deal filters out in this order, forwards and backwards in turn: int64 (groups, filters each).

    So that no group gets the first of every round. Members are in ascending order.
    """
    rounds = order.view(-1, groups).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.T.sort(dim=1).values
