"""An agent of modules with torch's own Adam, and an episode's budget in plain numbers."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def network(agent: dict[str, Tensor], prefix: str) -> nn.Sequential:
    """The actor, or critic, that a flat dict of tensors holds."""
    layers: list[nn.Module] = []
    for index in range(3):
        weight = agent[f"{prefix}/{index}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(agent[f"{prefix}/{index}.bias"])
        layers += [layer, nn.ReLU()]
    layers[-1] = nn.Sigmoid() if prefix.endswith("actor") else nn.Identity()
    return nn.Sequential(*layers)


class Pair:
    """Actor and critic, both followed slowly."""

    def __init__(self, agent: dict[str, Tensor]) -> None:
        self.actor, self.critic = network(agent, "actor"), network(agent, "critic")
        self.slow_actor, self.slow_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-4)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=1e-3)

    def update(self, now: Tensor, actions: Tensor, rewards: Tensor, after: Tensor, ends: Tensor):
        """One update from transitions (N, ...)."""
        with torch.no_grad():
            ahead = self.slow_critic(torch.cat([after, self.slow_actor(after)], dim=1))[:, 0]
            target = torch.where(ends, rewards - rewards.mean(), rewards - rewards.mean() + ahead)
        judged = self.critic(torch.cat([now, actions[:, None]], dim=1))[:, 0]
        self.critic_adam.zero_grad()
        F.mse_loss(judged, target).backward()
        self.critic_adam.step()
        self.actor_adam.zero_grad()
        (-self.critic(torch.cat([now, self.actor(now)], dim=1))).mean().backward()
        self.actor_adam.step()
        with torch.no_grad():
            for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
                for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    old.copy_(0.99 * old + 0.01 * new)


def densities(
    actions: list[float], sizes: list[int], target: float, low: float, high: float
) -> list[float]:
    """Each layer gets what its action asks for, unless the rest could then not have its least."""
    left = target * sum(sizes)
    given = []
    for layer, size in enumerate(sizes):
        least_behind = low * sum(sizes[layer + 1 :])
        most = (left - least_behind) / size
        given.append(min(low + (high - low) * actions[layer], most))
        left -= size * given[-1]
    return given
