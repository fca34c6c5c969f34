"""Tickets: subnetworks found by magnitude, in rounds, some of which begin where the first one did.

    round     of K cuts the k-th leaves (1 - sparsity)^(k / K) of the weights: each takes the same
              share of what is there, and the last one lands at what was asked
    cut       the smallest units go by the masks in force; what went stays away
    rewind    all that was learned or counted goes back to theta_0, batch norm's statistics as well

Cuts are a function of the step alone, and the rate's schedule restarts with each of them.
"""

import torch
from torch import Tensor, nn

from advprune.masking import bare, hold, maskings, prunable_weights
from advprune.method import Progress, PruningMethod, State, Task
from advprune.units import Units

_ORIGINAL, _ATTACHED = ".parametrizations.weight.original", ".parametrizations."
_THETA = "theta_0/"


def sparsity_after(cut: int, cuts: int, sparsity: float) -> float:
    """The sparsity that `cut` of `cuts` leaves: densities fall geometrically to the asked one."""
    return sparsity if cut == cuts else 1.0 - (1.0 - sparsity) ** (cut / cuts)


def rounds_over(progress: Progress, rounds: int) -> int:
    """How many of so many equally long rounds are over; where `paced` begins the next one."""
    if progress.step == progress.steps:
        return rounds
    return int(rounds * (progress.step + 0.5) / progress.steps)


def paced(fraction: float, rounds: int) -> float:
    """The share of its round that is over: the learning rate's schedule restarts with each."""
    return rounds * fraction % 1.0


def attach_whole(net: nn.Module) -> None:
    """Put masks before all prunable weights that remove nothing yet."""
    weights = prunable_weights(net)
    hold(net, {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})


def units_of(method: PruningMethod, net: nn.Module, task: Task) -> Units:
    """The units of a network that is masked already."""
    with bare(net):
        return method.units(net, task)


def norms_left(net: nn.Module, units: Units) -> dict[str, Tensor]:
    """The L2 norm of each unit; minus one where it went, below any that is there."""
    norms = units.norms(prunable_weights(net))
    masks = {name: masking.get_buffer("mask").float() for name, _, masking in maskings(net)}
    there = units.pool(masks)
    return {name: torch.where(there[name] > 0, norm, -1.0) for name, norm in norms.items()}


def remember(net: nn.Module) -> State:
    """theta_0: the weights and statistics as they are, for `rewind`."""
    return {f"{_THETA}{name}": value.clone() for name, value in _plain(net).items()}


def rewind(net: nn.Module, state: State) -> None:
    """Put back what `remember` saw; masks stay as they are."""
    for name, value in _plain(net).items():
        value.copy_(state[f"{_THETA}{name}"])


def _plain(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have where nothing is attached."""
    return {
        key.replace(_ORIGINAL, ".weight"): value
        for key, value in net.state_dict().items()
        if key.endswith(_ORIGINAL) or _ATTACHED not in key
    }
