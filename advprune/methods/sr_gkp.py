"""SR-GKP: keep smooth and unlike grouped kernels of every layer (Zhong et al. 2023).

A grouped kernel is what one input channel has in each filter of a group (see `grouped_kernels`).
Roughness of a kernel: the sum over its cells, and over the up to eight neighbours of each, of
|a^2 - b^2|. Filters are dealt out to groups in the order of their roughness; then every group of n
input channels keeps k of them by a search. With s_ij = 1 - |K_i - K_j| between flattened grouped
kernels, a selection S costs

    c(S) = sum over pairs in S of s_ij - b sum over i not in S of max over j in S of s_ij

low where what is kept is unlike each other, and what goes is like something that is kept. From each
grouped kernel as the first of a selection, a beam grows by the two kernels of the lowest summed
similarity to the selection, for each selection that it holds. After every third step the two
selections stay whose places in the orders of cost and of roughness, weighed 0.9 to 0.1, are best.
Of all that ended up anywhere, the one of the lowest cost is kept.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.card import Card
from advprune.grouped_kernels import GroupedKernels, group_count, grouped, snake
from advprune.masking import prunable_weights
from advprune.method import PruningMethod, State, Task, register
from advprune.types import Masks

WIDTH = 2  # kernels that each selection grows by, selections that stay at a check
CHECK_EVERY = 3
COST_SHARE = 0.9  # of the place by cost; the rest is the place by roughness
_HELD = 2**24  # float64 values of a search held at once: 128 MiB


@register
class SrGkp(PruningMethod):
    card: ClassVar[Card] = Card(
        title="SR-GKP",
        paper="Zhong et al., One Less Reason for Filter Pruning ..., NeurIPS 2023",
        year=2023,
        entry="SR-GKP",
        summary="keeps grouped kernels that are smooth and unlike each other, in every layer",
        equations=(
            "roughness of a kernel: the sum over its cells and their neighbours of |a^2 - b^2|; "
            "filters dealt out to eight groups, forwards and backwards in turn, the smoothest "
            "first",
            "s_ij = 1 - |K_i - K_j| of the grouped kernels of a group; c(S) = sum of s over pairs "
            "in S - b sum over i not in S of max over j in S of s_ij; b = pairs / removed of the "
            "first selection that is judged",
            "beam search from each kernel: every selection grows by the 2 kernels of lowest "
            "summed s; at every third step the 2 best stay, by 0.9 (place by cost) + 0.1 (place "
            "by roughness); of all ends the lowest c(S)",
            "the same share of every layer and group; no data is read",
        ),
        departures=(
            "follows the released code of ResNet-20 (its b stays what the first judged selection "
            "made it); the paper's formulas were not read",
            "all convolutions but the first are pruned, shortcuts and 1x1 included: those have "
            "no roughness, so that cost alone decides; the released code leaves shortcuts whole, "
            "and what it calls for 1x1 is not public",
            "as many groups of one size as divide the filters, eight at most; groups of a layer "
            "may differ by one kernel, so that the count is exact; every layer keeps at least one",
            "what goes is masked; the released code rewrites layers as grouped convolutions",
        ),
        pretraining="NT",
        finetuning="NT",
        structure="S",
        locality="L",
        criterion="LIS",
    )
    granularity: Literal["kernel"] = Field(
        default="kernel", description="what is removed as one: an input channel of a filter group"
    )

    def units(self, net: nn.Module, task: Task) -> GroupedKernels:
        return GroupedKernels(net, {n: groups_of(prunable_weights(net)[n]) for n in grouped(net)})

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        units, weights = self.units(net, task), prunable_weights(net)
        blank = {n: torch.zeros(len(g), units.inputs(n)) for n, g in units.groups.items()}
        counts = units.counts("uniform", blank, self.sparsity)
        kept: dict[str, Tensor] = {}
        for name, members in units.groups.items():
            each, more = divmod(counts[name], len(members))
            kept[name] = torch.stack([
                best_kernels(weights[name][filters.to(weights[name].device)], each + (g < more))
                for g, filters in enumerate(members)
            ])  # fmt: skip
        return units.masks(kept)


def groups_of(weight: Tensor) -> Tensor:
    """Which filters belong together, int64 (groups, filters each)."""
    rough = roughness(weight).sum(dim=1)
    return snake(rough.argsort(stable=True).cpu(), group_count(len(weight)))


def roughness(weight: Tensor) -> Tensor:
    """float64 (O, I): the sum over cells and neighbours of |a^2 - b^2|; every pair is met twice."""
    cells = weight.detach().double().square()
    up, left = cells[..., 1:, :], cells[..., :, 1:]
    differences = (
        up - cells[..., :-1, :],
        left - cells[..., :, :-1],
        up[..., 1:] - cells[..., :-1, :-1],
        up[..., :-1] - cells[..., :-1, 1:],
    )
    return 2.0 * torch.stack([d.abs().sum(dim=(2, 3)) for d in differences]).sum(dim=0)


@torch.no_grad()
def best_kernels(group: Tensor, keep: int) -> Tensor:
    """bool (I,), on the CPU: which `keep` grouped kernels of these filters (F, I, kh, kw) stay."""
    count = group.shape[1]
    if keep in (0, count):
        return torch.full((count,), keep > 0)
    kernels = group.detach().double().transpose(0, 1).flatten(1)
    exact = "donot_use_mm_for_euclid_dist"
    like = 1.0 - torch.cdist(kernels, kernels, compute_mode=exact)
    rough = roughness(group).sum(dim=0)
    judged = 1 + CHECK_EVERY if keep > CHECK_EVERY else keep
    balance = judged * (judged - 1) / 2 / (count - judged) if count > judged else 0.0
    most = WIDTH ** (CHECK_EVERY + 1)  # selections that a beam may come to hold
    ends: list[tuple[Tensor, Tensor]] = []
    for starts in torch.arange(count, device=like.device).split(max(1, _HELD // (most * count))):
        beam = searched(like, rough, starts, keep, balance)
        costs = beam.costs(balance).flatten()
        best = costs.argmin()
        ends.append((costs[best], beam.chosen.flatten(0, 1)[best]))
    return min(ends, key=lambda end: float(end[0]))[1].cpu()


class Beam(NamedTuple):
    """Selections (S, B) of n kernels: B of them for each of S first kernels.

    Attributes:
        chosen: bool (S, B, n).
        summed, nearest: (S, B, n), each kernel's similarity to the selection: its sum, its maximum.
        inner: (S, B), summed over pairs in the selection.
    """

    chosen: Tensor
    summed: Tensor
    nearest: Tensor
    inner: Tensor

    def costs(self, balance: float) -> Tensor:
        outer = self.nearest.masked_fill(self.chosen, 0.0).sum(dim=2)
        return self.inner - balance * outer

    def of(self, which: Tensor) -> "Beam":
        """Those at the places (S, B')."""
        wide = which[..., None].expand(-1, -1, self.chosen.shape[2])
        return Beam(
            self.chosen.gather(1, wide),
            self.summed.gather(1, wide),
            self.nearest.gather(1, wide),
            self.inner.gather(1, which),
        )

    def grown(self, like: Tensor) -> "Beam":
        """Every selection with each of the `WIDTH` kernels least like it, next to each other."""
        left = self.summed.masked_fill(self.chosen, torch.inf)
        picks = []
        for _ in range(min(WIDTH, int((~self.chosen[0, 0]).sum()))):
            picks.append(left.argmin(dim=2))  # the first among equals
            left.scatter_(2, picks[-1][..., None], torch.inf)
        new = torch.stack(picks, dim=2).flatten(1)
        places = torch.arange(new.shape[1], device=new.device) // len(picks)
        beam = self.of(places.expand(len(new), -1))
        added = beam.summed.gather(2, new[..., None])[..., 0]
        return Beam(
            beam.chosen.scatter(2, new[..., None], True),
            beam.summed + like[new],
            torch.maximum(beam.nearest, like[new]),
            beam.inner + added,
        )

    def checked(self, rough: Tensor, balance: float) -> "Beam":
        """The `WIDTH` best by their places in both orders; the last place is the best."""
        by_cost = self.costs(balance).argsort(dim=1, descending=True, stable=True)
        roughs = torch.where(self.chosen, rough, 0.0).sum(dim=2).gather(1, by_cost)
        by_rough = roughs.argsort(dim=1, descending=True, stable=True)
        # After both sorts: who stands where, with the place by cost it came from.
        places = torch.arange(by_cost.shape[1], device=by_cost.device, dtype=torch.float64)
        score = COST_SHARE * by_rough.double() + (1.0 - COST_SHARE) * places
        best = score.argsort(dim=1, descending=True, stable=True)[:, :WIDTH]
        return self.of(by_cost.gather(1, by_rough).gather(1, best))


def searched(like: Tensor, rough: Tensor, starts: Tensor, keep: int, balance: float) -> Beam:
    """The selections of `keep` kernels in which the beams from these kernels end."""
    first = like[starts][:, None]
    chosen = torch.zeros_like(first, dtype=torch.bool).scatter(2, starts[:, None, None], True)
    beam = Beam(chosen, first, first, first.new_zeros(len(starts), 1))
    for step in range(1, keep):
        beam = beam.grown(like)
        if step % CHECK_EVERY == 0:
            beam = beam.checked(rough, balance)
    return beam
