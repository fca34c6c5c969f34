"""Flying Bird: sparse from the first step, and rewired as it trains (Chen et al. 2022).

A network that has its final sparsity from the start, at densities by IGQ. Every 900 steps of the
paper's 78,200 (every 1,200 in the second half) each layer drops a share p of its smallest weights
and grows as many, at random or where the gradient is largest. p falls with a cosine, from a half to
0.005.

Flying Bird+ (`plus`) lets the number of weights follow the training. Of the changes between the
last five epochs,

    half or more have the robust gap (training minus validation) rise     0.4 p of them go as well
    half or more have the validation no better                            5 % more are grown

That runs in the third quarter of the search; the rewirings of the last one come back to the asked
counts in equal parts, the last rewiring exactly.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.allocate import Counts, allocate
from advprune.card import Card
from advprune.errors import Refused
from advprune.events import Event
from advprune.masking import current_masks, prunable_weights
from advprune.method import Optimisation, Progress, PruningMethod, State, Task, register
from advprune.repro import generator
from advprune.rewiring import begin, drawn, droppable, impose, portion, rewired, rewirings
from advprune.types import Masks

PERIOD = 900 / 78_200  # steps between rewirings, of 200 epochs of 391
LATE = 4 / 3  # the same in the second half, relative to the first
FIRST, LAST = 0.5, 0.005  # what is dropped
EPOCHS = 5  # whose changes Flying Bird+ looks at
SHRINK, GROW = 0.4, 0.05
ADAPTS, RETURNS = 0.5, 0.75  # shares of the search between which Flying Bird+ moves the counts


@register
class FlyingBird(PruningMethod):
    card: ClassVar[Card] = Card(
        title="Flying Bird",
        paper="Chen et al., Sparsity Winning Twice: Better Robust Generalization from More "
        "Efficient Training, ICLR 2022",
        year=2022,
        entry="FlyingBird",
        summary="sparse from the first step; drops the smallest weights and grows others in turn",
        equations=(
            "densities by IGQ: a layer of n keeps n / (1 + F n), at random; F spends the budget",
            "every 1.15 % of the steps, 1.53 % in the second half: each layer drops the share p of "
            "its smallest |w| and grows as many, at random or where |dL/dw| is largest",
            "p = 0.005 + 0.495 (1 + cos(pi t / T)) / 2; grown weights start at 1e-12, as good as 0",
            "plus: 0.4 p go as well where the robust gap rose in half of the last four epochs, and "
            "5 % more are grown where validation got no better in half of them",
        ),
        departures=(
            "the period is a share of the steps, the paper's 900 (then 1,200) of 78,200",
            "exactly as many are grown as dropped, and none that was just dropped; the released "
            "code draws each with a probability, among those too",
            "plus: validation is the error under attack; the released code reads its loss there",
            "plus: counts move from half of the search to three quarters, and are back at the "
            "asked sparsity by the last rewiring; in the paper they end where they are",
            "one learning-rate schedule, and the last weights; the paper's rate falls tenfold at "
            "half and three quarters, and the epoch is chosen on validation",
        ),
        pipeline="during",
        pretraining="none",
        finetuning="none",
        shots="IT",
        locality="L",
        criterion="LWM",
    )
    moves_weights: ClassVar[bool] = True
    growth: Literal["random", "gradient"] = Field(
        default="random", description="which weights are grown"
    )
    period: float = Field(
        default=PERIOD, gt=0, le=1, description="share of the steps between two rewirings"
    )
    until: float = Field(
        default=1.0, ge=0, le=1, description="share of the steps after which connections stay"
    )
    plus: bool = Field(
        default=False,
        description="Flying Bird+: counts follow robust gap and validation for a while",
    )

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        def draw(name: str) -> torch.Generator:
            return generator(self.random_seed(task, "start", name))

        begin(net, self._asked(net), draw, watched=self.growth == "gradient")
        unknown = torch.full((EPOCHS,), math.nan, dtype=torch.float64)
        return {"gaps": unknown, "errors": unknown.clone()} if self.plus else {}

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        # Taken at every step, or they would sum.
        seen = {
            name: rewiring.take().abs()
            for name, _, rewiring in rewirings(net)
            if self.growth == "gradient"
        }
        step, steps = progress.step, progress.steps
        if not self._due(step, steps):
            return None
        left = sum(self._due(later, steps) for later in range(step, steps))
        asked = self._asked(net)
        share = LAST + (FIRST - LAST) * 0.5 * (1.0 + math.cos(math.pi * progress.fraction))
        moves = self.plus and ADAPTS <= progress.fraction < RETURNS and left > 1
        shrinks = moves and _half(state["gaps"].diff() > 0)
        grows = moves and _half(state["errors"].diff() >= 0)
        for name, weight, rewiring in rewirings(net):
            mask, size = rewiring.mask, rewiring.mask.numel()
            kept = int(mask.sum())
            fewer, more = int(shrinks * SHRINK * share * kept), int(grows * GROW * share * kept)
            count = min(max(kept - fewer + more, 1), size)
            if progress.fraction >= RETURNS or left == 1:
                count = kept + round((asked[name] - kept) / left)
            drop = droppable(portion(share, kept) + fewer, kept, size, count)
            scores = seen.get(name)
            if scores is None:
                draw = generator(self.random_seed(task, "grow", name), step)
                scores = drawn(mask.shape, draw)
            impose(weight, rewiring, rewired(weight, mask, drop, scores, count))
        return Event.REWIRE | Event.FREEZE if left == 1 else Event.REWIRE

    def measured(self, state: State, row: Mapping[str, float]) -> None:
        if not self.plus:
            return
        if "val_robust" not in row:
            raise Refused(
                f"flyingbird: epoch {row['epoch']} has no robust accuracy on validation, which "
                "--plus follows; --set prune.validate_every=1, and an objective under attack"
            )
        for key, value in (
            ("gaps", row["train"] - row["val_robust"]),
            ("errors", 1.0 - row["val_robust"]),
        ):
            state[key].copy_(state[key].roll(-1))
            state[key][-1] = value

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        return current_masks(net)

    def _asked(self, net: nn.Module) -> Counts:
        return allocate("igq", prunable_weights(net), self.sparsity)

    def _due(self, step: int, steps: int) -> bool:
        """Whether this step ends with a rewiring; the last one does not, for what it grew."""
        late = LATE if step > 0.5 * steps else 1.0
        every = max(1, round(self.period * late * steps))
        return step % every == 0 and 0 < step < steps and step <= self.until * steps


def _half(changes: Tensor) -> bool:
    """Whether half of the changes or more are so; a change from an unknown value is not."""
    return 2 * int(changes.sum()) >= len(changes)
