"""Heracles: an agent learns how much of each layer to keep, HYDRA then learns what (Zhao 2022).

In the first share of the steps nothing of the network learns. An episode walks through the layers:
at layer l the agent (see `ddpg`) observes its shape, the multiply-accumulates that are removed
before it and left behind it, and the density a_(l-1) it gave last, and gives the density

    a_l = min(low + (high - low) action, wall_l),
    wall_l = (a_t N - sum over i < l of n_i a_i - low sum over i > l of n_i) / n_l

so that the budget a_t N is kept whatever follows. Masks keep the largest weights at these
densities; the reward is clean accuracy plus robust accuracy, by the statistics of the batch. A
quarter of the episodes is random. The densities of the best episode after those are handed to
HYDRA's search, which takes the steps that are left: scores learn under the robust loss which
weights to keep. Of channels (`granularity=channel`) each group that goes together is a layer.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune import ranks
from advprune.attacks.pgd import pgd
from advprune.batches import Batch
from advprune.card import Card
from advprune.channel_masking import attach_channels, detach_channels, learned
from advprune.ddpg import act, learn, new_agent, remember
from advprune.events import Event
from advprune.frozen import batch_statistics
from advprune.masking import Scored, attach, current_masks, freeze_layers, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, Progress, State, Task, register
from advprune.objectives import Loss, correct
from advprune.quotas import described, spend
from advprune.repro import generator
from advprune.structured import AS_ONE, StructuredMethod
from advprune.types import Masks

EPISODES = 400
RANDOM = 0.25  # share of the episodes
UPDATES = 20  # of the agent after an episode
NOISE, NOISE_DECAY = 0.5, 0.99  # deviation of the actions, its factor per episode
DENSEST = 0.8


@register
class Heracles(StructuredMethod):
    card: ClassVar[Card] = Card(
        title="Heracles",
        paper="Zhao, Koenigl & Wressnegger, Non-Uniform Adversarially Robust Pruning, AutoML 2022",
        year=2022,
        entry="Heracles",
        summary="an agent learns layer densities from accuracies, HYDRA's scores then fill them",
        equations=(
            "observed at layer l: index, widths, input size, stride, kernel, multiply-accumulates "
            "(each scaled to [0, 1]), what is removed before, what is left behind, a_(l-1)",
            "a_l = min(low + (0.8 - low) action, (a_t N - sum before n_i a_i - low sum behind n_i) "
            "/ n_l), low = 0.1 a_t; masks by magnitude",
            "reward of every step: clean + robust accuracy at the end of the episode, batch norm "
            "by the batch",
            "DDPG: two hidden layers of 300, Adam 1e-4 and 1e-3, tau 0.01, nothing discounted, 20 "
            "updates of 128 transitions an episode; 400 episodes, a quarter of them random, then "
            "noise 0.5 * 0.99^episode",
            "the densities of the best episode after those go to HYDRA's search for the weights",
        ),
        departures=(
            "after the released search, which is TensorFlow; its rewards come from 5,000 images an "
            "episode, here from the batches of its steps; fewer steps make fewer episodes",
            "the budget counts weights, or channels, as all methods' does (a mode of the released "
            "code, whose default counts multiply-accumulates); what an episode leaves of it is "
            "shared out in proportion",
            "one search: the agent has the first half of the steps, the scores the second; the "
            "released code runs HYDRA or R-ADMM afterwards, from its own repositories",
            "channels: one density for each group that goes together, with the shape of the first "
            "layer that makes it; widths rounded; colours and logits exempt",
        ),
        structure="US+S",
    )
    granularity: Literal["weight", "channel"] = Field(  # pyright: ignore
        default="weight", description=AS_ONE
    )
    agent_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the steps in which the agent searches"
    )

    def bounds(self) -> tuple[float, float]:
        """The least and the largest density of a layer."""
        target = 1.0 - self.sparsity
        return 0.1 * target, max(DENSEST, target)

    def pace(self, fraction: float) -> float:
        """The schedule of the learning rate is that of the scores."""
        return max(0.0, fraction - self.agent_share) / (1.0 - self.agent_share)

    def start(self, net: nn.Module, task: Task, optimisation: Optimisation) -> State:
        steps = int(self.agent_share * optimisation.steps)
        freeze_layers(net)
        features, macs = described(net, task.shape)
        self._attach(net, task)
        names = list(learned(net))
        fixed = torch.stack([features[name] for name in names])
        spread = fixed.amax(dim=0) - fixed.amin(dim=0)
        draw = generator(self.random_seed(task, "agent"))
        state = {
            **new_agent(fixed.shape[1] + 3, len(names), min(EPISODES, max(1, steps)), draw),
            "shape": (fixed - fixed.amin(dim=0)) / spread.clamp_min(1e-12),
            "macs": torch.tensor([float(macs[name]) for name in names]),
            "observed": torch.zeros(len(names), fixed.shape[1] + 3),
            "actions": torch.zeros(len(names)),
            "densities": torch.full((len(names),), 1.0 - self.sparsity),
            "right": torch.tensor(0.0, dtype=torch.float64),
            "shown": torch.tensor(0),
            "best": torch.zeros(len(names)),
            "best_reward": torch.tensor(-1.0),
            "found": torch.tensor(steps == 0),
        }
        if steps:
            self._plan(net, state, task, episodes(steps))
        self._follow(net, state)
        return state

    def loss(self, net: nn.Module, state: State, batch: Batch, task: Task) -> Loss:
        if state["found"]:
            return task.objective(net, batch)
        clean, robust = right(net, batch, task)
        counts = torch.stack([clean + robust, torch.full_like(clean, len(batch.labels))])
        for key, count in zip(("right", "shown"), ranks.total(counts).tolist(), strict=True):
            state[key] += count
        # Nothing learns by it; it is what the rows of the search show.
        wrong = 2.0 - (clean + robust) / len(batch.labels)
        return Loss(wrong.requires_grad_(), robust)

    def update(self, net: nn.Module, state: State, progress: Progress, task: Task) -> Event | None:
        event = None
        if not state["found"]:
            steps = int(self.agent_share * progress.steps)
            count = episodes(steps)
            if progress.step * count // steps > (progress.step - 1) * count // steps:
                self._judge(state, task, count)
                self._plan(net, state, task, count)
            if progress.step == steps:
                state["densities"].copy_(state["best"])
                state["found"].fill_(True)
                event = Event.RESET
        self._follow(net, state)
        return event

    def finish(self, net: nn.Module, state: State, task: Task) -> Masks:
        if self.granularity == "weight":
            return current_masks(net)
        masks = learned(net)
        scores = {name: masking.scores.detach().abs() for name, masking in masks.items()}
        wanted = dict(zip(masks, map(float, self._kept(net, state)), strict=True))
        detach_channels(net)
        units = self.channel_units(net, task)
        return units.select(scores, units.fit(wanted, self.sparsity))

    def _attach(self, net: nn.Module, task: Task) -> None:
        if self.granularity == "weight":
            attach(net, lambda _, weight: Scored(weight, weight.numel()))
            return
        units = self.channel_units(net, task)
        norms = units.pool({name: w.abs() for name, w in prunable_weights(net).items()})
        units.counts("uniform", norms, self.sparsity)  # refuses now what widths cannot meet
        attach_channels(net, units.groups, lambda g: Scored(norms[g.name], g.width))

    @torch.no_grad()
    def _plan(self, net: nn.Module, state: State, task: Task, count: int) -> None:
        """Walk through the layers: what is observed, done and given to each in the next episode."""
        episode = int(state["episodes"])
        draw = generator(self.random_seed(task, "episode", str(episode)))
        sizes, macs = sizes_of(net), state["macs"] / state["macs"].sum()
        (low, high), budget = self.bounds(), (1.0 - self.sparsity) * float(sizes.sum())
        last, given = 1.0, state["densities"]
        for layer in range(len(sizes)):
            removed = (macs[:layer] * (1.0 - given[:layer])).sum()
            told = torch.stack([removed, macs[layer + 1 :].sum(), torch.tensor(last)])
            seen = torch.cat([state["shape"][layer], told])
            if episode < int(RANDOM * count):
                action = torch.rand((), generator=draw)
            else:
                deviation = NOISE * NOISE_DECAY ** (episode - int(RANDOM * count))
                action = noisy(float(act(state, seen[None])), deviation, draw)
            before, behind = (sizes[:layer] * given[:layer]).sum(), sizes[layer + 1 :].sum()
            wall = float((budget - before - low * behind) / sizes[layer])
            last = min(low + (high - low) * float(action), max(wall, low))
            given[layer] = last
            state["observed"][layer], state["actions"][layer] = seen, action

    def _judge(self, state: State, task: Task, count: int) -> None:
        """Remember the episode that is over, and learn from all that are."""
        episode, first = int(state["episodes"]), int(RANDOM * count)
        reward = float(state["right"] / state["shown"])
        remember(state, state["observed"], state["actions"], reward)
        if episode >= first and reward > state["best_reward"]:
            state["best_reward"].fill_(reward)
            state["best"].copy_(state["densities"])
        if episode + 1 >= first:
            draw = generator(self.random_seed(task, "updates", str(episode)))
            for _ in range(UPDATES):
                learn(state, draw)
        state["right"].zero_()
        state["shown"].zero_()

    def _follow(self, net: nn.Module, state: State) -> None:
        """Keep in every layer what its density stands for, and select it anew."""
        kept = self._kept(net, state)
        for masking, keep in zip(learned(net).values(), kept, strict=True):
            masking.keep = keep
            masking.refresh()

    def _kept(self, net: nn.Module, state: State) -> list[int]:
        sizes = sizes_of(net)
        return spend(state["densities"], sizes, kept_count(int(sizes.sum()), self.sparsity))


def episodes(steps: int) -> int:
    return min(EPISODES, steps)


def sizes_of(net: nn.Module) -> Tensor:
    """How many weights, or channels, each learned mask has, float64."""
    sizes = [masking.mask.numel() for masking in learned(net).values()]
    return torch.tensor(sizes, dtype=torch.float64)


def noisy(action: float, deviation: float, draw: torch.Generator) -> Tensor:
    """An action near this one, in [0, 1]: normal, cut off at two deviations."""
    low, high = action - 2 * deviation, action + 2 * deviation
    drawn = nn.init.trunc_normal_(torch.empty(()), action, deviation, low, high, generator=draw)
    return drawn.abs().clamp_max(1.0)


def right(net: nn.Module, batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
    """How many images of a batch are right as they are, and attacked; batch norm by the batch."""
    threat, steps = task.objective.threat, task.objective.steps
    with batch_statistics(net):
        asked = partial(task.objective.logits, net)
        attacked = pgd(asked, batch.images, batch.labels, threat, batch.random, steps=steps)
        with torch.no_grad():
            clean = correct(asked(batch.images), batch.labels)
            return clean, correct(asked(attacked), batch.labels)
