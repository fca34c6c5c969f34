"""How HARP comes from a dense start down to its target, as a function of the length of the search.

Long searches follow the paper: rates start at a tenth, the weight of L_hw grows by gamma every
epoch until an epoch ends on target, and stays there. A few hundred steps are too short for that
ramp (the rates collapse), so there the budget itself is annealed: a cubic from the starting density
to the target over `ramp` of the steps. With T steps, and T_paper = 7,820:

    what is annealed     the budget where T < T_paper / 4, else gamma
    starting density     0.1 ^ (T / T_paper) for the budget (the shorter, the denser), 0.1 for gamma
    rates' learning rate min(1, T / T_paper), relative to the scores'
    gamma                0.01 max(1, T_paper / T), so that it can reach the target in time
"""

from dataclasses import dataclass
from typing import Literal

PAPER_STEPS = 7_820  # 20 epochs of 391 batches, the paper's search on CIFAR-10
SHORT = 0.25  # below this share of the paper's steps, the budget is annealed instead of gamma

Annealed = Literal["auto", "gamma", "budget"]


@dataclass(frozen=True)
class Annealing:
    """The numbers above for a search of `steps` steps towards the density `target`.

    Args:
        annealed: what is annealed; "auto" decides by the length.
        start: density at the start, or None for the rule above; never below the target.
        ramp: share of the steps that anneal the budget.
    """

    steps: int
    target: float
    annealed: Annealed
    start: float | None
    ramp: float

    @property
    def of_budget(self) -> bool:
        if self.annealed == "auto":
            return self.steps < SHORT * PAPER_STEPS
        return self.annealed == "budget"

    @property
    def first_density(self) -> float:
        length = self.steps / PAPER_STEPS if self.of_budget else 1.0
        return max(0.1**length if self.start is None else self.start, self.target)

    @property
    def gamma(self) -> float:
        return 0.01 * max(1.0, PAPER_STEPS / max(1, self.steps))

    @property
    def rate_lr(self) -> float:
        return min(1.0, self.steps / PAPER_STEPS)

    def budget(self, fraction: float) -> float:
        """Density allowed at this fraction of the run (Zhu and Gupta 2017, equation 1)."""
        left = max(0.0, 1.0 - fraction / self.ramp)
        return self.target + (self.first_density - self.target) * left**3
