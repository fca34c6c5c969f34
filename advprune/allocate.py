"""How a budget of weights is shared among layers. Every rule spends it to the last weight.

All rules map (weights by layer name, number of weights to keep) to the number kept in each layer.
Layers are known by name: tables in layer order have been mixed up before.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from advprune.errors import BadData, Refused
from advprune.masks import kept_count

Weights = Mapping[str, Tensor]
Counts = dict[str, int]


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
    return _global_counts({name: lamp_scores(weight) for name, weight in weights.items()}, total)


def global_magnitude(weights: Weights, total: int) -> Counts:
    """As many weights per layer as are among the `total` largest magnitudes of the network."""
    scores = {name: weight.detach().abs().flatten() for name, weight in weights.items()}
    return _global_counts(scores, total)


ALLOCATIONS: dict[str, Callable[[Weights, int], Counts]] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "global": global_magnitude,
}


def allocate(rule: str, weights: Weights, sparsity: float) -> Counts:
    """The counts of `rule` at this sparsity over all layers together.

    Raises:
        Refused: the rule is unknown.
        BadData: a layer would be left with no weight at all.
    """
    if rule not in ALLOCATIONS:
        known = ", ".join(ALLOCATIONS)
        raise Refused(f"allocation: {rule!r} is not known; choose one of {known}")
    size = sum(weight.numel() for weight in weights.values())
    kept = ALLOCATIONS[rule](weights, kept_count(size, sparsity))
    for name, count in kept.items():
        if count == 0:
            raise BadData(
                f"allocation {rule!r} at sparsity {sparsity:g} keeps 0 of "
                f"{weights[name].numel()} weights in {name}; use 'erk' or 'lamp', or lower the "
                "sparsity"
            )
    return kept


def _check_budget(total: int, layers: int) -> None:
    if total < layers:
        raise BadData(
            f"allocation: {total} weights cannot serve {layers} layers; lower the sparsity"
        )


def _sizes(weights: Weights) -> dict[str, int]:
    return {name: weight.numel() for name, weight in weights.items()}


def _global_counts(scores: Mapping[str, Tensor], total: int) -> Counts:
    """How many of the `total` largest scores fall into each layer; ties go to earlier layers."""
    _check_budget(total, len(scores))
    everything = torch.cat([score.flatten() for score in scores.values()])
    threshold = everything.kthvalue(everything.numel() - total + 1).values
    kept = {name: int((score > threshold).sum()) for name, score in scores.items()}
    owed = total - sum(kept.values())
    for name, score in scores.items():
        ties = min(owed, int((score == threshold).sum()))
        kept[name] += ties
        owed -= ties
    return kept
