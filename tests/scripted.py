"""A method that does at each step what a script says, and a short search with it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from toy import Memory, make_images, make_net, make_task, snapshot

from advprune.card import Card
from advprune.events import Event
from advprune.masking import Fixed, attach, maskings
from advprune.method import Optimisation, Progress, PruningMethod, State, Task
from advprune.optimisation import ParameterGroups
from advprune.train import Schedule, Trained, fit
from advprune.types import Masks

IMAGES = make_images(train=24, val=9)
EPOCH_STEPS, EPOCHS = 2, 4
SCHEDULE = Schedule(epochs=EPOCHS, batch_size=12, lr=0.1, validate_every=1)


class Scripted(PruningMethod):
    """Does at each step what it is told to; the weights of the start are in its state."""

    card: ClassVar[Card] = Card(title="x", paper="x", year=2026, summary="x", equations=("x",))
    script: dict[int, Any] = Field(default={})
    rounds: int = 1
    adam: bool = False

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        attach(net, lambda _, weight: Fixed(torch.ones_like(weight, dtype=torch.bool)))
        return {"told": torch.tensor(0.0), **{f"start/{k}": v for k, v in snapshot(net).items()}}

    def optimiser(
        self, groups: ParameterGroups, optimisation: Optimisation
    ) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.Adam(groups, lr=0.01)
        return super().optimiser(groups, optimisation)

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        event = self.script.get(progress.step)
        if event is not None and event & (Event.PRUNE | Event.REWIRE):
            draw = torch.Generator().manual_seed(progress.step)
            for _, _, masking in maskings(net):
                mask: Tensor = masking.mask  # pyright: ignore
                mask.copy_(torch.rand(mask.shape, generator=draw) > 0.5)
        if event is not None and Event.REWIND in event:
            rewound = {k.removeprefix("start/"): v for k, v in state.items() if "/" in k}
            net.load_state_dict(rewound)
        return event

    def measured(self, state: State, row: Mapping[str, float]) -> None:
        state["told"] += row["epoch"] + row.get("val_robust", 0.0)

    def pace(self, fraction: float) -> float:
        return self.rounds * fraction % 1.0

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        raise NotImplementedError


def run(
    script: Mapping[int, Event],
    memory: Memory | None = None,
    *,
    select: bool = False,
    **options: Any,
) -> tuple[nn.Module, Trained, Memory]:
    """A search of `EPOCHS` times `EPOCH_STEPS` steps, with a checkpoint after each if not given."""
    net = make_net()
    memory = memory or Memory(every=1)
    method = Scripted(script=dict(script), **options)
    trained = fit(net, IMAGES, make_task(), SCHEDULE, memory, method, select=select)
    return net, trained, memory
