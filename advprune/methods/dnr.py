"""DNR: rewired by momentum under a loss of clean and attacked images (Kundu et al. 2021).

Sparse from the first step, by the sparse momentum of Dettmers and Zettlemoyer (2019). After every
epoch but the last,

    each layer drops a share p of its smallest weights
    a layer's part of what all dropped is its part of the mean |momentum| of weights that are on
    it grows those that are off with the largest |momentum|

with the momentum M <- mu M + dL/dw of all weights, on or off, of the loss

    L = beta CE(clean) + (1 - beta) L_robust + sum over layers of rho / 2 |W - Z + U|^2

whose last term is dynamic: Z is what W + U would be after the next drop, and U sums W - Z, both
taken anew after every rewiring.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune import admm
from advprune.allocate import Counts, allocate, distribute
from advprune.batches import Batch
from advprune.card import Card
from advprune.events import Event
from advprune.masking import current_masks, prunable_weights
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.objectives import Loss, natural
from advprune.repro import generator
from advprune.rewiring import begin, droppable, dropped, impose, portion, rewired, rewirings
from advprune.types import Masks


@register
class Dnr(PruningMethod):
    card: ClassVar[Card] = Card(
        title="DNR",
        paper="Kundu et al., DNR: A Tunable Robust Pruning Framework Through Dynamic Network "
        "Rewiring of DNNs, ASP-DAC 2021",
        year=2021,
        entry="DNR",
        summary="sparse momentum under a hybrid loss; layers that learn most get most weights",
        equations=(
            "L = beta CE(clean) + (1 - beta) L_robust + sum over layers of rho/2 |W - Z + U|^2",
            "M <- mu M + dL/dw at every step, for weights that are on and off",
            "after an epoch: each layer drops the share p of its smallest |w|; a layer gets back "
            "in proportion to the mean |M| of what it has, and grows where |M| is largest",
            "then Z <- W + U as the next drop would leave it, U <- U + W - Z",
            "p falls from a half to zero with a cosine; equal densities at the start",
        ),
        departures=(
            "built from the abstract and a released code that only tests: constrained optimisation "
            "under a hybrid loss, layers by normalised momentum. The rewiring is that of sparse "
            "momentum, whose code is public; beta, rho and p are options, not the paper's numbers",
            "the penalty is R-ADMM's, taken anew at each rewiring, for a dynamic L2 penalty that "
            "is known by name alone",
            "single weights only: how the paper prunes channels, its abstract does not say",
            "none is grown that was just dropped; sparse momentum may",
        ),
        pipeline="during",
        pretraining="none",
        finetuning="none",
        shots="IT",
        locality="G",
        criterion="SOLWM",
    )
    moves_weights: ClassVar[bool] = True
    clean: float = Field(
        default=0.5, ge=0, le=1, description="beta, the weight of the loss on clean images"
    )
    drop: float = Field(
        default=0.5, gt=0, le=1, description="share that is dropped at first; falls to zero"
    )
    rho: float | None = Field(
        default=None, gt=0, description="weight of the penalty; follows the length of the search"
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        def draw(name: str) -> torch.Generator:
            return generator(self.random_seed(task, "start", name))

        begin(net, allocate("uniform", prunable_weights(net), self.sparsity), draw, watched=True)
        # DNR's own is not known.
        default = admm.PULL / (optimisation.lr * max(1, optimisation.steps))
        state = {
            "rho": torch.tensor(default if self.rho is None else self.rho),
            "mu": torch.tensor(optimisation.momentum),
        }
        for name, weight, _ in rewirings(net):
            for kind in ("M", "U", "Z"):
                state[f"{kind}/{name}"] = torch.zeros_like(weight.detach())
        self._aim(net, state, self.drop)
        return state

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        robust = task.objective(net, batch)
        clean = natural(task.objective, net, batch)
        value = self.clean * clean.value + (1.0 - self.clean) * robust.value
        return Loss(value + self.penalty(net, state), robust.correct)

    def penalty(self, net: nn.Module, state: State) -> Tensor:
        """sum_l rho / 2 |W_l - Z_l + U_l|^2, of the parameters: M is not to see it."""
        return admm.distance({name: weight for name, weight, _ in rewirings(net)}, state)

    @torch.no_grad()
    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        mu = float(state["mu"])
        for name, _, rewiring in rewirings(net):
            state[f"M/{name}"].mul_(mu).add_(rewiring.take())
        if not progress.ends_epoch or progress.step == progress.steps:
            return None
        share = self._share(progress.fraction)
        drops = {
            name: droppable(portion(share, kept), kept, size, kept)
            for name, (kept, size) in _filled(net).items()
        }
        counts = self._counts(net, state, drops)
        for name, weight, rewiring in rewirings(net):
            scores = state[f"M/{name}"].abs()
            before = rewiring.mask.clone()
            after = rewired(weight, before, drops[name], scores, counts[name])
            impose(weight, rewiring, after)
            state[f"U/{name}"].mul_(before & after)
        self._aim(
            net, state, self._share(progress.fraction + progress.epoch_steps / progress.steps)
        )
        last = progress.step + progress.epoch_steps >= progress.steps
        return Event.REWIRE | Event.FREEZE if last else Event.REWIRE

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)

    def _share(self, fraction: float) -> float:
        return self.drop * 0.5 * (1.0 + math.cos(math.pi * fraction))

    def _counts(self, net: nn.Module, state: State, drops: Counts) -> Counts:
        """How many weights each layer has after growing, by the momentum of those it keeps."""
        means, left, rooms = {}, {}, {}
        for name, weight, rewiring in rewirings(net):
            momentum = state[f"M/{name}"][rewiring.mask].abs()
            means[name] = float(momentum.mean(dtype=torch.float64))
            kept = len(momentum)
            left[name], rooms[name] = kept - drops[name], weight.numel() - kept
        grown = flooded(means, rooms, sum(drops.values()))
        wanted = {name: left[name] + grown[name] for name in left}
        limits = {name: left[name] + rooms[name] for name in left}
        return distribute(wanted, limits, sum(left.values()) + sum(drops.values()))

    @torch.no_grad()
    def _aim(self, net: nn.Module, state: State, share: float) -> None:
        """Z and U for the weights as they stand; `share` is what the next rewiring drops."""
        filled = _filled(net)
        for name, weight, rewiring in rewirings(net):
            kept, size = filled[name]
            moved = weight + state[f"U/{name}"]
            stay = dropped(moved, rewiring.mask, droppable(portion(share, kept), kept, size, kept))
            state[f"Z/{name}"].copy_(moved * stay)
            state[f"U/{name}"].add_(weight - state[f"Z/{name}"])


def _filled(net: nn.Module) -> dict[str, tuple[int, int]]:
    """How many weights of each layer are on, and how many there are."""
    return {name: (int(it.mask.sum()), it.mask.numel()) for name, _, it in rewirings(net)}


def flooded(shares: dict[str, float], rooms: Counts, count: int) -> dict[str, float]:
    """`count` dealt in proportion to `shares`; what a layer has no room for goes to the others."""
    full: set[str] = set()
    while True:
        left = count - sum(rooms[name] for name in full)
        free = {name: share for name, share in shares.items() if name not in full}
        total = sum(free.values())
        dealt = {
            name: left * (share / total if total else 1.0 / len(free))
            for name, share in free.items()
        }
        over = {name for name, amount in dealt.items() if amount > rooms[name]}
        if not over:
            return dealt | {name: float(rooms[name]) for name in full}
        full |= over
