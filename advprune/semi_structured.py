"""Two of four neighbouring input channels, the pattern that sparse tensor cores skip."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from advprune.errors import BadData, Refused
from advprune.masking import Scored
from advprune.models import prunable
from advprune.types import Masks
from advprune.units import Counts, Units


class ScoredFours(Scored):
    """A mask of two of every four, learned through scores."""

    def refresh(self) -> None:
        self.mask.copy_(two_of_four(self.scores.detach().abs()))


class TwoOfFour(Units):
    """A unit is a weight; layers whose inputs do not come in fours, or are grouped, stay whole.

    Those are not counted, so that sparsity is always a half.
    """

    def __init__(self, net: nn.Module) -> None:
        self.shapes = {name: layer.weight.shape for name, layer in prunable(net).items()}
        self.eligible = [name for name, layer in prunable(net).items() if in_fours(layer)]
        self.sizes = {name: self.shapes[name].numel() for name in self.eligible}
        if not self.eligible:
            raise Refused(
                f"--granularity 2:4: no layer from {next(iter(self.shapes))} on reads a multiple "
                "of four channels; use --granularity weight"
            )

    def pool(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name] for name in self.eligible}

    def norms(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: weights[name].abs() for name in self.eligible}

    def counts(
        self,
        rule: str,
        scores: Mapping[str, Tensor],
        sparsity: float,
        dense: Collection[str] = (),
    ) -> Counts:
        return {name: size // 2 for name, size in self.sizes.items()}

    def select(self, scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
        whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items()}
        return whole | {name: two_of_four(scores[name]).cpu() for name in self.eligible}

    def kept(self, masks: Masks) -> Counts:
        kept = {name: int(masks[name].sum()) for name in self.eligible}
        for name in self.eligible:
            if not bool((fours(masks[name]).sum(dim=2) == 2).all()):
                raise BadData(f"prune: {name} does not keep two of every four inputs; a defect")
        return kept


def in_fours(layer: nn.Module) -> bool:
    """Whether a layer reads a multiple of four channels, all of them in every output."""
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        return False
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    return weight.shape[1] % 4 == 0


def fours(values: Tensor) -> Tensor:
    """(O, I, ...) -> (O, I / 4, 4, ...): groups of four neighbouring input channels."""
    return values.unflatten(1, (-1, 4))


def two_of_four(scores: Tensor) -> Tensor:
    """The mask of the two largest scores of each four; among equal scores the lowest index wins."""
    order = fours(scores.detach()).argsort(dim=2, descending=True, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool)
    return mask.scatter_(2, order[:, :, :2], True).flatten(1, 2)
