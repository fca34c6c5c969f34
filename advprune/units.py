"""What is kept or removed as one: a weight, a kernel column, two weights of four, a channel.

    weight    each weight by itself
    column    (1, I, kh, kw): one kernel position of one input channel, across the filters
    2:4       of four neighbouring input channels two stay, for each output and kernel position
    filter    a channel, judged by the rows of weights that make it
    channel   a channel, judged by the columns of weights that read it

Channels that only go together (see `coupling`) are one unit: removing it zeroes the rows that make
it and the columns that read it, so that it can be cut out of the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from advprune.allocate import allocate
from advprune.errors import BadData, Refused
from advprune.masking import prunable_weights
from advprune.masks import keep_best, kept_count
from advprune.types import Masks

Counts = dict[str, int]


class Units(ABC):
    """A way to divide the prunable weights of a network.

    Attributes:
        sizes: how many units there are, by layer, or by channel group.
    """

    sizes: Counts

    @abstractmethod
    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One value for each unit out of one for each weight: their sum."""

    @abstractmethod
    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        """How many units to keep of each layer or group.

        Args:
            rule: of `allocate`; "global" ranks the scores.
            scores: of the units.
            dense: layers that keep all their weights, where units are not a pattern or channels.

        Raises:
            Refused: the rule does not count such units.
            BadData: the budget cannot be met.
        """

    @abstractmethod
    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        """The masks of the best units, one entry for each weight, on the CPU."""

    @abstractmethod
    def kept(self, masks: Masks) -> Counts:
        """How many units the masks keep whole.

        Raises:
            BadData: a unit is kept in part.
        """

    def norms(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The L2 norm of each unit."""
        pooled = self.pool({name: weight.square() for name, weight in weights.items()})
        return {name: values.sqrt() for name, values in pooled.items()}

    def check(self, masks: Masks, sparsity: float) -> None:
        """Fail where the masks do not keep exactly what was asked, or leave a layer empty.

        Raises:
            BadData: naming the counts, or the layer.
        """
        kept = self.kept(masks)
        asked = kept_count(sum(self.sizes.values()), sparsity)
        if sum(kept.values()) != asked:
            raise BadData(
                f"prune: the masks keep {sum(kept.values())} of {sum(self.sizes.values())}, "
                f"sparsity {sparsity:g} asks for {asked}; this is a defect of the method"
            )
        for name, count in kept.items():
            if count == 0:
                raise BadData(
                    f"prune: the masks keep 0 of {self.sizes[name]} weights in {name}; "
                    "lower the sparsity or choose another allocation"
                )


class SingleWeights(Units):
    """Each weight by itself."""

    def __init__(self, net: nn.Module) -> None:
        self.weights = prunable_weights(net)
        self.sizes = {name: weight.numel() for name, weight in self.weights.items()}

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(values)

    def norms(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight.abs() for name, weight in weights.items()}

    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        return allocate(rule, self.weights, sparsity, scores=scores, dense=dense)

    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        return keep_best(scores, counts)

    def kept(self, masks: Masks) -> Counts:
        return {name: int(masks[name].sum()) for name in self.sizes}


class Columns(Units):
    """One kernel position of one input channel, across the filters (R-ADMM)."""

    def __init__(self, net: nn.Module) -> None:
        self.shapes = {name: weight.shape for name, weight in prunable_weights(net).items()}
        self.sizes = {name: shape[1:].numel() for name, shape in self.shapes.items()}

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.sum(dim=0, keepdim=True) for name, value in values.items()}

    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        refuse_weight_rules(rule, "column")
        return allocate(rule, scores, sparsity, scores=scores, dense=dense)

    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        columns = keep_best(scores, counts)
        return {name: mask.expand(self.shapes[name]).contiguous() for name, mask in columns.items()}

    def kept(self, masks: Masks) -> Counts:
        return {name: whole(name, masks[name].flatten(1), dim=0) for name in self.sizes}


def refuse_weight_rules(rule: str, granularity: str) -> None:
    """Raises Refused for allocations that look at weights one by one."""
    if rule not in ("uniform", "global"):
        raise Refused(
            f"--allocation {rule} counts weights, --granularity {granularity} does not; "
            "use --allocation uniform or global"
        )


def whole(name: str, mask: Tensor, dim: int) -> int:
    """How many units, each spread along `dim`, are kept."""
    some, every = mask.any(dim=dim), mask.all(dim=dim)
    if not torch.equal(some, every):
        raise BadData(f"prune: {name} keeps parts of what goes as one; a defect of the method")
    return int(every.sum())
