"""Heracles: the agent's updates, an episode's budget, its reward, the hand-over to HYDRA."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import heracles as oracle
from torch import nn
from toy import EPS, Memory, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import ddpg
from advprune.channel_masking import learned
from advprune.masking import current_masks, maskings, prunable_weights
from advprune.masks import keep_top, kept_count
from advprune.method import Optimisation
from advprune.methods.heracles import Heracles, noisy, right
from advprune.models import prunable
from advprune.quotas import described, spend
from advprune.stats import layer_macs
from advprune.train import Schedule, fit
from advprune.types import Threat

TASK = make_task(steps=1)
IMAGES = make_images(train=24, val=9)
SCHEDULE = Schedule(epochs=4, batch_size=12, lr=0.1, validate_every=0)  # eight steps
STEPS = 8


def started(sparsity: float = 0.8, steps: int = STEPS, **options: Any) -> tuple:
    net, method = make_net(), Heracles(sparsity=sparsity, **options)
    return net, method, method.start(net, TASK, Optimisation(0.1, 0.0, steps=steps))


# The agent


def test_an_update_is_that_of_modules_and_torchs_adam() -> None:
    agent = ddpg.new_agent(5, 4, 6, generator(0))
    pair, draw = oracle.Pair(agent), generator(1)
    for _ in range(3):
        seen, done = torch.rand(4, 5, generator=draw), torch.rand(4, generator=draw)
        ddpg.remember(agent, seen, done, float(torch.rand((), generator=draw)))
    for seed in range(5):
        chosen = torch.randperm(12, generator=generator(seed))
        episode, step = chosen // 4, chosen % 4
        ddpg.learn(agent, generator(seed))
        pair.update(
            agent["seen"][episode, step],
            agent["done"][episode, step],
            agent["rewards"][episode],
            agent["seen"][episode, (step + 1).clamp_max(3)],
            step == 3,
        )
    expected = {
        "actor": pair.actor,
        "critic": pair.critic,
        "slow/actor": pair.slow_actor,
        "slow/critic": pair.slow_critic,
    }
    for prefix, net in expected.items():
        layers = [layer for layer in net if isinstance(layer, nn.Linear)]
        for index, layer in enumerate(layers):
            for part in ("weight", "bias"):
                got = agent[f"{prefix}/{index}.{part}"]
                assert torch.allclose(got, getattr(layer, part), rtol=1e-4, atol=1e-6), prefix


def test_the_oldest_episodes_make_room() -> None:
    agent = ddpg.new_agent(2, 1, 3, generator(0))
    for reward in range(5):
        ddpg.remember(agent, torch.zeros(1, 2), torch.zeros(1), reward)
    assert agent["rewards"].tolist() == [3, 4, 2]


def test_the_agent_finds_the_action_that_pays() -> None:
    agent, draw = ddpg.new_agent(3, 1, 200, generator(0)), generator(5)
    seen = torch.ones(1, 3)
    for _ in range(200):
        action = torch.rand(1, generator=draw)
        ddpg.remember(agent, seen, action, -float((action - 0.8).abs()))
    before = float(ddpg.act(agent, seen))
    for _ in range(400):
        ddpg.learn(agent, draw)
    after = float(ddpg.act(agent, seen))
    assert abs(after - 0.8) < 0.1 < abs(before - 0.8)


def test_noise_stays_within_two_deviations_and_the_unit_interval() -> None:
    draw = generator(0)
    drawn = torch.stack([noisy(0.5, 0.1, draw) for _ in range(200)])
    assert 0.3 <= float(drawn.min()) < 0.4 < 0.6 < float(drawn.max()) <= 0.7
    wide = torch.stack([noisy(0.9, 0.5, draw) for _ in range(200)])
    assert float(wide.min()) >= 0.0 and float(wide.max()) == 1.0


# The budget of an episode


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_an_episode_keeps_the_budget_whatever_the_actions(sparsity: float) -> None:
    for episode in range(6):
        net, method, state = started(sparsity, steps=400)
        state["episodes"].fill_(episode)
        method._plan(net, state, TASK, 100)
        sizes = [masking.mask.numel() for masking in learned(net).values()]
        low, high = method.bounds()
        expected = oracle.densities(state["actions"].tolist(), sizes, 1 - sparsity, low, high)
        assert state["densities"].tolist() == pytest.approx(expected, rel=1e-4)
        spent = sum(n * a for n, a in zip(sizes, expected, strict=True))
        assert spent <= (1 - sparsity) * sum(sizes) * (1 + 1e-6)
        assert min(expected) >= low * (1 - 1e-6)


def test_the_oracle_by_hand() -> None:
    # The first layer may have .8, but then one hundredth each would not be left for the others.
    given = oracle.densities([1.0, 1.0], [50, 50], 0.1, 0.01, 0.8)
    assert given == pytest.approx([0.19, 0.01])


def test_what_is_left_of_a_budget_is_shared_out_in_proportion() -> None:
    sizes = torch.tensor([100.0, 100.0, 10.0])
    assert spend(torch.tensor([0.1, 0.2, 0.1]), sizes, 62) == [20, 40, 2]
    # A layer that would be more than full is full, and the others share the rest.
    assert spend(torch.tensor([0.1, 0.2, 0.8]), sizes, 70) == [20, 40, 10]
    assert spend(torch.tensor([0.5, 0.2, 0.8]), sizes, 210) == [100, 100, 10]


def test_masks_of_an_episode_are_those_of_magnitude_and_exact() -> None:
    net, _, _ = started()
    masks = current_masks(net)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(1604, 0.8)
    weights = prunable_weights(make_net())
    for name, mask in masks.items():
        assert torch.equal(mask, keep_top(weights[name].abs(), int(mask.sum())))


def test_what_the_agent_sees_of_a_layer() -> None:
    net = make_net()
    features, macs = described(net, TASK.shape)
    assert macs == layer_macs(net, TASK.shape)
    rows = {name.split(".")[1]: row.tolist() for name, row in features.items()}
    assert rows == {
        "conv1": [0, 1, 8, 6, 6, 1, 3, macs["network.conv1.weight"]],
        "conv2": [1, 8, 16, 6, 6, 2, 3, macs["network.conv2.weight"]],
        "conv3": [2, 16, 20, 3, 3, 1, 1, macs["network.conv3.weight"]],
        "fc": [3, 20, 3, 1, 1, 0, 1, macs["network.fc.weight"]],
    }


def test_what_it_sees_of_an_episode() -> None:
    net, method, state = started()
    macs = torch.tensor([float(m) for m in layer_macs(net, TASK.shape).values()])
    given = state["densities"].tolist()
    for layer in range(4):
        removed = sum(float(macs[i]) * (1 - given[i]) for i in range(layer)) / float(macs.sum())
        behind = float(macs[layer + 1 :].sum() / macs.sum())
        last = given[layer - 1] if layer else 1.0
        assert state["observed"][layer, -3:].tolist() == pytest.approx([removed, behind, last])
    assert state["observed"][:, :-3].amin() == 0.0
    assert state["observed"][:, :-3].amax() == 1.0
    assert method.bounds() == pytest.approx((0.02, 0.8))


# The reward


def test_the_reward_is_by_the_statistics_of_the_batch_and_changes_nothing() -> None:
    net, batch = make_net(), make_batch(12)
    before = snapshot(net)
    no_attack = replace(TASK, objective=replace(TASK.objective, threat=Threat(0.0)))
    clean, robust = right(net, batch, no_attack)
    assert same(snapshot(net), before)
    assert net.training
    with torch.no_grad():
        expected = net.train()(batch.images).argmax(dim=1)
    assert int(clean) == int(robust) == int((expected == batch.labels).sum())


def test_an_attack_lowers_the_reward() -> None:
    net, images = make_net(), make_images(train=60)
    fit(net, images, make_task(name="natural"), replace(SCHEDULE, epochs=30), Memory())
    strong = make_task(steps=5)
    assert strong.objective.threat.eps == EPS
    clean, robust = right(net, make_batch(60), strong)
    assert int(clean) > 50
    assert int(robust) < int(clean)


# The search


def test_the_agent_searches_first_then_scores_learn() -> None:
    net, memory = make_net(), Memory(every=1)
    trained = fit(net, IMAGES, TASK, SCHEDULE, memory, Heracles(sparsity=0.8))
    scores = {step: _part(saved[1], "scores") for step, saved in memory.saves.items()}
    norms = {step: _part(saved[1], "bn1.weight") for step, saved in memory.saves.items()}
    assert same(scores[1], scores[4]) and same(norms[1], norms[4])
    assert not same(scores[4], scores[5]) and not same(norms[4], norms[5])
    # Four episodes, the first of them random, then the hand-over.
    assert int(trained.state["episodes"]) == 4
    assert [row.get("reset") for row in trained.history] == [None, 1, None, None]
    assert int(trained.state["updates"]) == 20 * 4


def test_the_best_episode_after_the_random_ones_wins() -> None:
    net, memory = make_net(), Memory(every=1)
    method = Heracles(sparsity=0.8)
    trained = fit(net, IMAGES, TASK, SCHEDULE, memory, method)
    rewards = trained.state["rewards"][1:4]
    planned = [memory.saves[step][1]["method/densities"] for step in (1, 2, 3)]
    best = planned[int(rewards.argmax())]
    assert torch.equal(trained.state["densities"], best)
    assert float(trained.state["best_reward"]) == float(rewards.max())
    sizes = torch.tensor([float(m.mask.numel()) for m in learned(net).values()])
    kept = [int(mask.sum()) for mask in method.finish(net, trained.state, TASK).values()]
    assert kept == spend(best, sizes, kept_count(1604, 0.8))


def test_the_reward_is_the_share_of_right_images_of_the_episode() -> None:
    net, memory = make_net(), Memory(every=1)
    fit(net, IMAGES, TASK, SCHEDULE, memory, Heracles(sparsity=0.8))
    rewards = memory.saves[8][1]["method/rewards"]
    for step in range(4):
        loss = memory.steps[step][1]["loss"]
        assert float(rewards[step]) == pytest.approx(2.0 - loss, abs=1e-6)


def test_episodes_are_as_many_as_steps_allow_and_400_at_most() -> None:
    assert len(started(steps=60)[2]["rewards"]) == 30
    _, _, long = started(steps=4000)
    assert len(long["rewards"]) == ddpg.REMEMBERED


def test_a_run_too_short_for_an_episode_is_hydra_at_one_density() -> None:
    net, _, state = started(steps=1)
    assert bool(state["found"])
    kept = [int(mask.sum()) / mask.numel() for mask in current_masks(net).values()]
    assert kept == pytest.approx([0.2] * 4, abs=0.02)


def test_the_rate_of_the_scores_begins_when_the_agent_is_done() -> None:
    method = Heracles(agent_share=0.25)
    assert [method.pace(f) for f in (0.0, 0.25, 0.625, 1.0)] == [0.0, 0.0, 0.5, 1.0]


def test_channels_have_one_density_for_each_group() -> None:
    narrow = {"min_channels": 1, "round_to": 1}
    net, method, state = started(0.5, granularity="channel", **narrow)
    assert list(learned(net)) == [f"network.conv{i}.weight" for i in (1, 2, 3)]
    assert sum(m.keep for m in learned(net).values()) == 22
    masks = method.finish(net, state, TASK)
    assert not list(maskings(net))
    wide = [int(masks[n].flatten(1).any(dim=1).sum()) for n in list(prunable(net))[:3]]
    assert sum(wide) == 22


def _part(tensors: dict[str, torch.Tensor], end: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in tensors.items() if k.startswith("net/") and k.endswith(end)}
