"""How a budget of weights is shared among layers. Every rule spends it to the last weight.

All rules map (weights by layer name, number of weights to keep) to the number kept in each layer.
Layers are known by name: tables in layer order have been mixed up before.
"""

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from advprune.errors import BadData, Refused
from advprune.masks import kept_count

Weights = Mapping[str, Tensor]
Counts = dict[str, int]
_HALVINGS = 100  # more than a float64 has bits


def distribute(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int) -> Counts:
    """Round real-valued counts to integers that sum to `total`, by largest remainder.

    Each layer keeps at least one weight and at most all of its own.

    Raises:
        BadData: the budget is smaller than the number of layers.
    """
    _check_budget(total, len(sizes))
    if total > sum(sizes.values()):
        raise ValueError(f"distribute: {total} exceeds all {sum(sizes.values())} weights together")
    result = {name: min(max(math.floor(wanted[name]), 1), sizes[name]) for name in sizes}
    missing = total - sum(result.values())
    step = 1 if missing > 0 else -1
    # The layer that is furthest from what it wanted, in the direction that is owed, goes first.
    while missing:
        room = [n for n in sizes if (result[n] < sizes[n] if step > 0 else result[n] > 1)]
        order = sorted(room, key=lambda n: step * (result[n] - wanted[n]))
        for name in order[: abs(missing)]:
            result[name] += step
        missing = total - sum(result.values())
    return result


def uniform(weights: Weights, total: int) -> Counts:
    """The same density everywhere."""
    sizes = _sizes(weights)
    density = total / sum(sizes.values())
    return distribute({name: density * size for name, size in sizes.items()}, sizes, total)


def erk(weights: Weights, total: int) -> Counts:
    """Erdos-Renyi-Kernel (Evci et al. 2020): density in proportion to sum(shape) / prod(shape).

    While a layer would exceed density one, the single worst layer is made dense and the rest of
    the budget is shared again.
    """
    sizes = _sizes(weights)
    raw = {name: sum(weight.shape) / weight.numel() for name, weight in weights.items()}
    dense: set[str] = set()
    while True:
        rest = total - sum(sizes[name] for name in dense)
        scale = rest / sum(raw[name] * sizes[name] for name in sizes if name not in dense)
        free = [name for name in sizes if name not in dense]
        worst = max(free, key=lambda name: raw[name])
        if scale * raw[worst] <= 1.0 or len(free) == 1:
            break
        dense.add(worst)
    wanted = {n: float(sizes[n]) if n in dense else scale * raw[n] * sizes[n] for n in sizes}
    return distribute(wanted, sizes, total)


def lamp_scores(weight: Tensor) -> Tensor:
    """LAMP (Lee et al. 2021, equation 4): w_u^2 / sum of w_v^2 over v >= u, weights ascending.

    Returns:
        float64, one score per weight in ascending order of magnitude; the last one is exactly 1,
        or 0 where all weights are zero.
    """
    squares = weight.detach().flatten().to(torch.float64).square().sort().values
    # The reversed sum keeps the largest weight's score at exactly one; total minus a running sum
    # loses it to cancellation in layers of a million weights.
    tails = squares.flip(0).cumsum(0).flip(0)
    return squares / tails.clamp_min(torch.finfo(torch.float64).tiny)


def lamp(weights: Weights, total: int) -> Counts:
    """As many weights per layer as are among the `total` largest LAMP scores of the network."""
    return global_counts({name: lamp_scores(weight) for name, weight in weights.items()}, total)


def global_magnitude(weights: Weights, total: int) -> Counts:
    """As many weights per layer as are among the `total` largest magnitudes of the network."""
    return global_counts({name: weight.detach().abs() for name, weight in weights.items()}, total)


def igq(weights: Weights, total: int) -> Counts:
    """Ideal gas quotas (Vysogorets and Kempe 2023): of a layer of n stay n / (1 + F n).

    Counts are drawn together: small layers keep most of theirs, and none more than 1 / F. F is what
    spends the budget.
    """
    sizes = _sizes(weights)

    def kept(force: float) -> dict[str, float]:
        return {name: size / (1.0 + force * size) for name, size in sizes.items()}

    low, high = 0.0, len(sizes) / max(total, 1)  # as many layers of 1 / F at most are the budget
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if sum(kept(middle).values()) > total else (low, middle)
    return distribute(kept(low), sizes, total)


ALLOCATIONS: dict[str, Callable[[Weights, int], Counts]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "global": global_magnitude,
    "igq": igq,
}


def allocate(
    rule: str,
    weights: Weights,
    sparsity: float,
    *,
    scores: Weights | None = None,
    dense: Collection[str] = (),
) -> Counts:
    """The counts of `rule` at this sparsity over all layers together.

    Args:
        scores: what the rule "global" ranks, by layer; magnitudes if not given.
        dense: layers that keep all their weights; the others share what is left.

    Raises:
        Refused: the rule is unknown.
        BadData: what is left cannot serve every layer with a weight, or all layers are dense.
    """
    if rule not in ALLOCATIONS:
        known = ", ".join(ALLOCATIONS)
        raise Refused(f"allocation: {rule!r} is not known; choose one of {known}")
    sizes = _sizes(weights)
    whole = {name: sizes[name] for name in sizes if name in dense}
    left = kept_count(sum(sizes.values()), sparsity) - sum(whole.values())
    rest = {name: weight for name, weight in weights.items() if name not in dense}
    if not rest:
        raise BadData("allocation: the method keeps every layer of this network; nothing to prune")
    _check_budget(left, len(rest))
    if rule == "global" and scores is not None:
        shared = global_counts({name: scores[name] for name in rest}, left)
    else:
        shared = ALLOCATIONS[rule](rest, left)
    return {name: whole[name] if name in whole else shared[name] for name in sizes}


def global_counts(scores: Weights, total: int) -> Counts:
    """How many of the `total` largest scores fall into each layer; ties go to earlier layers.

    Every layer keeps its largest score, whatever its rank: without a single weight it would pass
    no signal, and most criteria do not know.

    Raises:
        BadData: the budget is smaller than the number of layers.
    """
    _check_budget(total, len(scores))
    ranked = {name: _best_first(score) for name, score in scores.items()}
    everything = torch.cat(list(ranked.values()))
    threshold = everything.kthvalue(everything.numel() - total + 1).values
    kept = {name: int((score > threshold).sum()) for name, score in ranked.items()}
    owed = total - sum(kept.values())
    for name, score in ranked.items():
        ties = min(owed, int((score == threshold).sum()))
        kept[name] += ties
        owed -= ties
    return kept


def _best_first(score: Tensor) -> Tensor:
    """The scores as float64 (n,), the largest one raised above those of all other layers."""
    flat = score.detach().flatten().to(torch.float64).clone()
    flat[flat.argmax()] = math.inf
    return flat


def _check_budget(total: int, layers: int) -> None:
    if total < layers:
        raise BadData(
            f"allocation: {total} weights cannot serve {layers} layers; lower the sparsity"
        )


def _sizes(weights: Weights) -> dict[str, int]:
    return {name: weight.numel() for name, weight in weights.items()}
