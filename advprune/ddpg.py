"""Deep deterministic policy gradient (Lillicrap et al. 2016), for episodes of one length.

An actor mu maps what is observed to an action in [0, 1], a critic Q judges both. From transitions
(s, a, r, s') of past episodes, alive = 0 at their ends and 1 before,

    critic   lowers (r + alive Q'(s', mu'(s')) - Q(s, a))^2, nothing discounted
    actor    raises Q(s, mu(s))

and mu', Q' follow both slowly. Every step of an episode is given the reward of its end. All that an
agent is lives in one flat dict of tensors, on the CPU, so that a checkpoint holds it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Agent = dict[str, Tensor]

HIDDEN = 300
ACTOR_LR, CRITIC_LR = 1e-4, 1e-3
FOLLOW = 0.01  # tau
SAMPLED = 128  # transitions of an update
REMEMBERED = 200  # episodes
_BETAS, _EPS = (0.9, 0.999), 1e-8


def new_agent(features: int, steps: int, episodes: int, draw: torch.Generator) -> Agent:
    """An agent without experience.

    Args:
        features: numbers that are observed at a step.
        steps: of an episode.
        episodes: how many there will be.
    """
    agent: Agent = {"updates": torch.tensor(0)}
    for net, inputs, bias in (("actor", features, 0.001), ("critic", features + 1, 0.1)):
        for layer, (i, o) in enumerate([(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]):
            agent[f"{net}/{layer}.weight"] = 0.01 * torch.randn(o, i, generator=draw)
            agent[f"{net}/{layer}.bias"] = torch.full((o,), bias)
    learned = list(agent.items())[1:]
    agent |= {f"slow/{name}": value.clone() for name, value in learned}
    agent |= {f"first/{name}": torch.zeros_like(value) for name, value in learned}
    agent |= {f"second/{name}": torch.zeros_like(value) for name, value in learned}
    kept = min(episodes, REMEMBERED)
    return agent | {
        "seen": torch.zeros(kept, steps, features),
        "done": torch.zeros(kept, steps),
        "rewards": torch.zeros(kept),
        "episodes": torch.tensor(0),
    }


def act(agent: Agent, seen: Tensor, whose: str = "actor") -> Tensor:
    """mu(s) in (0, 1), (N,), of observations (N, features)."""
    return torch.sigmoid(_through(agent, whose, seen))


def judge(agent: Agent, seen: Tensor, actions: Tensor, whose: str = "critic") -> Tensor:
    """Q(s, a), (N,)."""
    return _through(agent, whose, torch.cat([seen, actions[:, None]], dim=1))


def remember(agent: Agent, seen: Tensor, actions: Tensor, reward: float) -> None:
    """Add an episode; the oldest one makes room."""
    place = int(agent["episodes"]) % len(agent["rewards"])
    agent["seen"][place], agent["done"][place] = seen, actions
    agent["rewards"][place] = reward
    agent["episodes"] += 1


def learn(agent: Agent, draw: torch.Generator) -> None:
    """One update of critic, actor and their followers; rewards count from their mean."""
    kept, steps = agent["done"].shape
    known = min(int(agent["episodes"]), kept) * steps
    chosen = torch.randperm(known, generator=draw)[:SAMPLED]
    episode, step = chosen // steps, chosen % steps
    now, actions = agent["seen"][episode, step], agent["done"][episode, step]
    alive = (step < steps - 1).to(now)
    after = agent["seen"][episode, (step + 1).clamp_max(steps - 1)]
    rewards = agent["rewards"][episode]
    with torch.no_grad():
        ahead = judge(agent, after, act(agent, after, "slow/actor"), "slow/critic")
        target = rewards - rewards.mean() + alive * ahead
    agent["updates"] += 1
    with torch.enable_grad():
        critic = _leaves(agent, "critic/")
        loss = F.mse_loss(judge(agent | critic, now, actions), target)
        _adam(agent, critic, torch.autograd.grad(loss, list(critic.values())), CRITIC_LR)
        actor = _leaves(agent, "actor/")
        loss = -judge(agent, now, act(agent | actor, now)).mean()
        _adam(agent, actor, torch.autograd.grad(loss, list(actor.values())), ACTOR_LR)
    for name in (*critic, *actor):
        agent[f"slow/{name}"].lerp_(agent[name], FOLLOW)


def _through(agent: Agent, whose: str, x: Tensor) -> Tensor:
    for layer in range(3):
        x = F.linear(x, agent[f"{whose}/{layer}.weight"], agent[f"{whose}/{layer}.bias"])
        x = x.relu() if layer < 2 else x
    return x[:, 0]


def _leaves(agent: Agent, prefix: str) -> Agent:
    return {k: v.clone().requires_grad_() for k, v in agent.items() if k.startswith(prefix)}


@torch.no_grad()
def _adam(agent: Agent, leaves: Agent, gradients: tuple[Tensor, ...], lr: float) -> None:
    """A step of Adam (Kingma and Ba 2015), in place."""
    count = int(agent["updates"])
    first, second = (1.0 - beta**count for beta in _BETAS)
    for name, gradient in zip(leaves, gradients, strict=True):
        mean = agent[f"first/{name}"].lerp_(gradient, 1.0 - _BETAS[0])
        square = agent[f"second/{name}"].lerp_(gradient.square(), 1.0 - _BETAS[1])
        agent[name].addcdiv_(mean, square.sqrt() / math.sqrt(second) + _EPS, value=-lr / first)
