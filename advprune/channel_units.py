"""Channels as what is kept or removed as one, with widths that engines like."""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.channels import ChannelGroup, read
from advprune.cost import Cost, of_macs, of_sizes
from advprune.coupling import couple
from advprune.errors import BadData
from advprune.masking import prunable_weights
from advprune.masks import keep_best
from advprune.types import Masks
from advprune.units import Counts, Units, refuse_weight_rules
from advprune.widths import choices, fit, within

Judged = Literal["filter", "channel"]


class ChannelUnits(Units):
    """The removable channels of a network.

    Sparsity is the share of channels that go, or, with a budget of multiply-accumulates, what the
    network would cost if every group lost that share. Widths are rounded, so that the budget is met
    to within one step of one group, and never exceeded.

    Args:
        shape: (C, H, W) of one image.
        judged: by the weights that make a channel ("filter") or that read it ("channel").
        least, multiple: see `widths.choices`.
        budget: what is counted.

    Raises:
        Incompatible: the network cannot be traced, or has no removable channels.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, int, int],
        judged: Judged,
        least: int,
        multiple: int,
        budget: Literal["channels", "macs"] = "channels",
    ) -> None:
        self.groups = couple(net, shape)
        self.judged = judged
        self.sizes = {group.name: group.width for group in self.groups}
        self.allowed = {name: choices(size, least, multiple) for name, size in self.sizes.items()}
        self.cost: Cost = (
            of_sizes(self.sizes) if budget == "channels" else of_macs(net, self.groups, shape)
        )
        self._shapes = {name: weight.shape for name, weight in prunable_weights(net).items()}

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over the rows that make, or the columns that read, each channel.

        Averaged over the layers that do: a residual stream is not worth more for having many.
        """
        return {group.name: self._judge(group, values) for group in self.groups}

    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        refuse_weight_rules(rule, self.judged)
        # Names the layer where no widths at all meet the budget, whatever the rule.
        same = self.fit({n: (1.0 - sparsity) * size for n, size in self.sizes.items()}, sparsity)
        if rule == "uniform":
            return same
        return self.fit(allocate(rule, scores, sparsity, scores=scores), sparsity)

    def fit(self, wanted: Mapping[str, float], sparsity: float) -> Counts:
        """The allowed widths nearest to these, within the budget of this sparsity.

        Raises:
            BadData: the narrowest widths exceed it.
        """
        budget = self.cost.uniform(1.0 - sparsity)
        return fit(wanted, self.allowed, self._spent, budget)

    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        return self.masks(keep_best(scores, counts))

    def masks(self, kept: Mapping[str, Tensor]) -> Masks:
        """bool (width,) for each group -> one entry for each weight, on the CPU."""
        masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self._shapes.items()}
        for group in self.groups:
            gone = ~kept[group.name].cpu()
            for slot in group.makers:
                masks[slot.weight][slot.index[gone].flatten()] = False
            for slot in group.readers:
                masks[slot.weight][:, slot.index[gone].flatten()] = False
        return masks

    def channels(self, masks: Masks) -> Masks:
        """What `masks` was given: bool (width,) for each group.

        Raises:
            BadData: the masks are not those of whole channels.
        """
        kept = {group.name: read(group, masks) for group in self.groups}
        for name, mask in self.masks(kept).items():
            if not torch.equal(mask, masks[name]):
                raise BadData(f"prune: {name} keeps parts of channels; a defect of the method")
        return kept

    def kept(self, masks: Masks) -> Counts:
        return {name: int(mask.sum()) for name, mask in self.channels(masks).items()}

    def check(self, masks: Masks, sparsity: float) -> None:
        kept = self.kept(masks)
        for name, count in kept.items():
            if count not in self.allowed[name]:
                raise BadData(
                    f"prune: {name} keeps {count} of {self.sizes[name]} channels, none of the "
                    f"widths {self.allowed[name]}; this is a defect of the method"
                )
        spent, budget = self._spent(kept), self.cost.uniform(1.0 - sparsity)
        more = [self._spent(kept | {name: wider}) for name, wider in self._steps(kept)]
        if not within(spent, budget) or any(within(cost, budget) for cost in more):
            raise BadData(
                f"prune: the widths cost {spent:.4f} of the network, sparsity {sparsity:g} asks "
                f"for {budget:.4f}; this is a defect of the method"
            )

    def _steps(self, kept: Mapping[str, int]) -> list[tuple[str, int]]:
        """The next allowed width of each group that has one."""
        return [
            (name, next(width for width in self.allowed[name] if width > count))
            for name, count in kept.items()
            if count < self.sizes[name]
        ]

    def _spent(self, kept: Mapping[str, int]) -> float:
        return self.cost.of(kept, self.sizes)

    def _judge(self, group: ChannelGroup, values: Mapping[str, Tensor]) -> Tensor:
        slots = group.makers if self.judged == "filter" else group.readers
        axis = 0 if self.judged == "filter" else 1
        sums = []
        for slot in slots:
            lines = values[slot.weight].movedim(axis, 0).flatten(1).sum(dim=1)
            sums.append(lines[slot.index.to(lines.device)].sum(dim=1))
        return torch.stack(sums).mean(dim=0)
