"""BCS-P: connections sampled at every step of the training (Ozdenizci and Legenstein 2021).

    w = sign theta    where theta > 0, else zero; signs are fixed for good

    theta <- a step of the optimiser, on what is on
    theta <- theta + lr N(0, 1e-6)
    what came to zero or below is off
    as many as are missing of the whole network come on at 1e-12, at random

Which layer a new connection belongs to is drawn in proportion to the layers' sizes, so that the
densities of layers move while the number of connections stays. At the start the first layer and
the logits layer are dense, the others at half the density asked for; the rest of the budget is
drawn like connections that are missing.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from advprune.allocate import distribute
from advprune.card import Card
from advprune.events import Event
from advprune.masking import attach, current_masks, maskings, prunable_weights
from advprune.masks import keep_top, kept_count
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.models import logits_layer, prunable
from advprune.repro import generator
from advprune.rewiring import BORN
from advprune.types import Masks

NOISE = 1e-6  # standard deviation, relative to the learning rate
ENDS, MIDDLE = 0.6, 0.5  # of the outer layers' weights, and of the density asked for


class Signed(nn.Module):
    """w = sign theta m. The layer's own parameter is theta, which is positive where m is on."""

    mask: Tensor
    sign: Tensor

    def __init__(self, sign: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", sign)
        self.register_buffer("mask", mask)

    def forward(self, theta: Tensor) -> Tensor:
        return theta * self.sign * self.mask


@register
class BcsP(PruningMethod):
    card: ClassVar[Card] = Card(
        title="BCS-P",
        paper="Ozdenizci and Legenstein, Training Adversarially Robust Sparse Networks via "
        "Bayesian Connectivity Sampling, ICML 2021",
        year=2021,
        entry="BCS-P",
        summary="samples connections at every step: those that reach zero die, others are born",
        equations=(
            "w = sign theta where theta > 0, else 0; theta starts at |w|, signs never change",
            "every step: SGD on the robust loss, then theta += lr N(0, std 1e-6) on what is on",
            "theta <= 0 dies; what is missing of the budget of all layers is born at 1e-12",
            "a birth falls on a layer in proportion to its size, there on any weight that is off",
            "at the start: 0.6 of the first and the logits layer, half the asked density elsewhere",
        ),
        departures=(
            "signs are those of the network that is handed on; drawn in the released code",
            "the densities at the start are set by hand for each network in the released code (of "
            "VGG-16 the second convolution has 0.6 and two more 0.2, of ResNet-18 the first stage "
            "0.2); here one rule, in which the outer layers take half the budget at most",
            "what the rule leaves of the budget is born before the first step, not after it",
            "what died keeps no momentum, and a layer that would die out gets a birth first",
            "the noise follows the peak of the learning rate, not its schedule",
            "decay through the gradient (SGD); decoupled in the released code (SGDW), which with "
            "a momentum of 0.9 decays as fast",
        ),
        pipeline="during",
        pretraining="none",
        finetuning="none",
        shots="IT",
        locality="L, G",
        criterion="BCS",
    )
    moves_weights: ClassVar[bool] = True

    @torch.no_grad()
    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        kept = self._first(net)
        signs: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        for name, layer in prunable(net).items():
            weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
            draw = generator(self.random_seed(task, "start", name))
            mask = keep_top(torch.rand(weight.shape, generator=draw), kept[name])
            masks[name] = mask.to(weight.device)
            signs[name] = torch.where(weight < 0, -1.0, 1.0)
            weight.copy_(weight.abs().clamp_min(BORN) * masks[name])
        attach(net, lambda name, _: Signed(signs[name], masks[name]))
        _bear(net, self._budget(net), generator(self.random_seed(task, "births"), 0))
        return {"noise": torch.tensor(NOISE * optimisation.lr)}

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        draw = generator(self.random_seed(task, "noise"), progress.step)
        scale = float(state["noise"])
        died = False
        for theta, masking in _signed(net):
            mask = masking.mask
            noise = scale * torch.randn(int(mask.sum()), generator=draw)
            moved = theta.masked_scatter(mask, theta[mask] + noise.to(theta.device))
            alive = mask & (moved > 0)
            died = died or not torch.equal(alive, mask)
            theta.copy_(moved * alive)
            mask.copy_(alive)
        if not died:
            return None
        births = generator(self.random_seed(task, "births"), progress.step)
        _bear(net, self._budget(net), births)
        return Event.REWIRE

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)

    def _budget(self, net: nn.Module) -> int:
        return kept_count(sum(w.numel() for w in prunable_weights(net).values()), self.sparsity)

    def _first(self, net: nn.Module) -> dict[str, int]:
        """How many weights of each layer are on before the budget is filled."""
        sizes = {name: weight.numel() for name, weight in prunable_weights(net).items()}
        budget = kept_count(sum(sizes.values()), self.sparsity)
        ends = {next(iter(sizes)), logits_layer(net)} & sizes.keys()
        outer = ENDS * sum(sizes[name] for name in ends)
        fit = min(1.0, 0.5 * budget / outer)
        share = {
            name: fit * ENDS if name in ends else MIDDLE * (1.0 - self.sparsity) for name in sizes
        }
        wanted = {name: share[name] * size for name, size in sizes.items()}
        total = max(int(sum(wanted.values())), len(sizes))
        return distribute(wanted, sizes, min(total, budget))


def _signed(net: nn.Module) -> list[tuple[nn.Parameter, Signed]]:
    """The parameter and the parametrisation of every layer."""
    return [
        (layer.parametrizations.weight.original, masking)  # pyright: ignore
        for _, layer, masking in maskings(net)
    ]


def _bear(net: nn.Module, budget: int, draw: torch.Generator) -> None:
    """Turn on what is missing of the budget, at random."""
    layers = _signed(net)
    sizes = torch.tensor([masking.mask.numel() for _, masking in layers])
    alive = torch.stack([masking.mask.sum() for _, masking in layers]).cpu()
    births = shared(budget - int(alive.sum()), sizes, alive, draw)
    for (theta, masking), count in zip(layers, births.tolist(), strict=True):
        if count == 0:
            continue
        off = (~masking.mask).flatten().nonzero().squeeze(1)
        born = torch.zeros(theta.numel(), dtype=torch.bool, device=theta.device)
        born[off[distinct(count, len(off), draw).to(off.device)]] = True
        born = born.view(theta.shape)
        theta.masked_fill_(born, BORN)
        masking.mask.logical_or_(born)


def shared(count: int, sizes: Tensor, alive: Tensor, draw: torch.Generator) -> Tensor:
    """Births of each layer, (L,) int64: in proportion to sizes, as many as a layer has room for.

    Args:
        sizes, alive: (L,) int64, weights of each layer, and how many of them are on.
    """
    births = (alive == 0).long()
    while (left := count - int(births.sum())) > 0:
        room = sizes - alive - births
        chances = sizes.double() * (room > 0)
        drawn = torch.multinomial(chances, left, replacement=True, generator=draw)
        births += drawn.bincount(minlength=len(sizes)).minimum(room)
    return births


def distinct(count: int, high: int, draw: torch.Generator) -> Tensor:
    """(count,) int64, each below `high` and none twice, any such set as likely as any other."""
    if 2 * count > high:
        return torch.randperm(high, generator=draw)[:count]
    found = torch.empty(0, dtype=torch.int64)
    while (left := count - len(found)) > 0:
        found = torch.cat([found, torch.randint(high, (left,), generator=draw)]).unique()
    return found
