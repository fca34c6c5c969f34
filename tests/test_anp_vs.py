"""ANP-VS: two losses that each move their own side, gates that learn, channels that go."""

import copy
from typing import Any

import pytest
import torch
from oracles import anp_vs as oracle
from pydantic import ValidationError
from torch import Tensor, nn
from toy import Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.batches import Batch
from advprune.channel_units import ChannelUnits
from advprune.errors import BadData
from advprune.gating import Gating, gating_of
from advprune.masking import bake, hold
from advprune.method import Progress, State, Task
from advprune.methods.anp_vs import AnpVs, _forward
from advprune.objectives import Objective, cross_entropy_attack
from advprune.optimisation import Optimisation
from advprune.repro import seeded
from advprune.train import Schedule, fit
from advprune.types import Images, Masks, Threat
from advprune.vulnerability import distance

TASK = make_task(steps=2)
WIDTHS = [8, 16, 20]
SMALL: dict[str, Any] = {"min_channels": 1, "round_to": 1}


def anp_vs(sparsity: float = 0.5, **options: Any) -> AnpVs:
    return AnpVs(sparsity=sparsity, **SMALL | options)


def started(
    method: AnpVs, net: nn.Module | None = None, images: int = 100
) -> tuple[nn.Module, Gating, State]:
    net = net or make_net()
    state = method.start(net, TASK, Optimisation(0.1, 5e-4, 100, images=images))
    return net, gating_of(net), state


def attacked(net: nn.Module, batch: Batch, task: Task = TASK) -> Images:
    return cross_entropy_attack(task.objective, net, batch)


def fresh_noise(count: int, images: int) -> tuple[Tensor, Tensor]:
    """The numbers that the next draw of gates will take from the global generator."""
    with torch.random.fork_rng():
        return torch.rand(count, dtype=torch.float64), torch.rand(images, count)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


# The two losses


@pytest.mark.parametrize("warmth", [0.0, 0.4, 1.0])
def test_each_side_descends_its_own_loss(warmth: float) -> None:
    method = anp_vs(kl=30.0, suppression=5.0)
    net, gating, state = started(method, images=50)
    state["warmth"].fill_(warmth)
    gating.a_uc.data.uniform_(-1, 3, generator=torch.Generator().manual_seed(1))
    gating.b_uc.data.uniform_(-1, 2, generator=torch.Generator().manual_seed(2))
    gating.refresh()
    batch = make_batch(9)
    expected, theirs = copy.deepcopy(net), attacked(net, make_batch(9))
    with seeded(3):
        u, v = fresh_noise(44, 9)
        loss = method.loss(net, state, batch, TASK)
    loss.value.backward()

    twin = gating_of(expected)
    for handle in twin._handles:
        handle.remove()
    z = oracle.gates(twin.a_uc, twin.b_uc, u, v)
    for_gates, for_weights = oracle.losses(
        expected, batch.images, theirs, batch.labels, list(z.split(WIDTHS, dim=1)), 5.0, seed=0
    )
    for_gates = for_gates + 30.0 * warmth * twin.divergence() / 50
    sides = {True: for_gates, False: for_weights}
    named = dict(expected.named_parameters())
    got = gradients(net)
    assert got.keys() == named.keys()
    for of_gates, value in sides.items():
        mine = {name: p for name, p in named.items() if ("_uc" in name) == of_gates}
        found = torch.autograd.grad(value, list(mine.values()), retain_graph=True)
        for name, gradient in zip(mine, found, strict=True):
            scale = float(gradient.abs().max())
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5 * scale)
            assert scale > 0 or name.endswith("fc.bias")
    assert loss.value.item() == pytest.approx(for_weights.item(), rel=1e-5)


def test_the_vulnerability_pulls_at_the_first_layer() -> None:
    pulls = []
    for suppression in (0.0, 100.0):
        method = anp_vs(suppression=suppression)
        net, _, state = started(method)
        with seeded(3):
            method.loss(net, state, make_batch(), TASK).value.backward()
        pulls.append(gradients(net)["network.conv1.weight"])
    assert float((pulls[0] - pulls[1]).norm()) > float(pulls[0].norm())


def test_noise_is_not_vulnerability() -> None:
    """Images that no attack moves: gates and dropout must be the same for both passes."""
    values = []
    task = Task(Objective("pgd", Threat(0.0)), 0, TASK.shape)
    for suppression in (0.0, 1e6):
        method = anp_vs(suppression=suppression)
        net, _, state = started(method, make_net(dropout=0.5))
        with seeded(3):
            values.append(float(method.loss(net, state, make_batch(), task).value.detach()))
    assert values[0] == values[1]


def test_dropout_and_gates_are_noise_to_both_passes() -> None:
    """Else the test above would hold for a network without any."""
    method = anp_vs()
    values = set()
    for dropout in (0.0, 0.5):
        net, _, state = started(method, make_net(dropout=dropout))
        with seeded(3):
            for _ in range(2):
                values.add(float(method.loss(net, state, make_batch(), TASK).value.detach()))
    assert len(values) == 4


def test_the_attack_sees_settled_gates_and_leaves_no_gradients() -> None:
    method, batch = anp_vs(), make_batch()
    net, gating, state = started(method)
    seen = []
    handle = gating.register_forward_hook(lambda *call: seen.append(call[2].shape))
    method.loss(net, state, batch, TASK)
    handle.remove()
    layers = 3
    # Two steps of the attack, then the clean pass and the adversarial one.
    assert seen == [(1, 44)] * 2 * layers + [(8, 44)] * 2 * layers
    assert all(p.grad is None for p in net.parameters())
    assert net.training


def test_the_right_answers_are_counted_on_adversarial_images() -> None:
    method, batch = anp_vs(gate_start=30.0), make_batch(30)
    net, _, state = started(method)
    correct = []
    handle = net.register_forward_hook(
        lambda *call: correct.append(int((call[2].argmax(dim=1) == batch.labels).sum()))
    )
    loss = method.loss(net, state, batch, TASK)
    handle.remove()
    assert int(loss.correct) == correct[-1] != correct[-2]


# Schedules


def test_all_that_learns_is_in_one_of_two_groups_of_adam() -> None:
    method = anp_vs()
    net, gating, _ = started(method)
    optimisation = Optimisation(0.1, 1e-4, 200 * 782)
    optimiser = method.optimiser(method.groups(net, optimisation), optimisation)
    assert type(optimiser) is torch.optim.Adam
    weights, gates = optimiser.param_groups
    # The paper's rates at the usual rate of SGD.
    assert (weights["lr"], gates["lr"]) == pytest.approx((1e-3, 1e-2))
    assert (weights["weight_decay"], gates["weight_decay"]) == (1e-4, 0.0)
    assert {id(p) for p in gates["params"]} == {id(p) for p in gating.parameters()}
    both = [id(p) for p in (*weights["params"], *gates["params"])]
    assert sorted(both) == sorted(id(p) for p in net.parameters())


@pytest.mark.parametrize(
    ("gate_lr", "steps", "expected"),
    [
        (None, 156_400, 0.02),
        (None, 2_000, 0.02),
        (None, 400, 0.1),
        (None, 10, 0.2),
        (None, 0, 0.2),
        (0.5, 10, 0.1),
    ],
)
def test_in_a_short_search_the_gates_hurry(
    gate_lr: float | None, steps: int, expected: float
) -> None:
    method = anp_vs(gate_lr=gate_lr)
    net, _, _ = started(method)
    _, gates = method.groups(net, Optimisation(0.2, 5e-4, steps))
    assert gates["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "expected"), [(0.5, [0, 0.4, 0.8, 1, 1, 1]), (0.0, [1] * 6)])
def test_the_divergence_is_warmed_up(warmup: float, expected: list[float]) -> None:
    method = anp_vs(kl_warmup=warmup)
    net, _, state = started(method)
    got = [float(state["warmth"])]
    for step in range(1, 6):
        method.update(net, state, Progress(step, 5, 5), TASK)
        got.append(float(state["warmth"]))
    assert got == pytest.approx(expected)


def test_gates_settle_after_every_step() -> None:
    method = anp_vs()
    net, gating, state = started(method)
    gating.a_uc.data.fill_(-1.0)
    method.update(net, state, Progress(1, 5, 5), TASK)
    assert gating.settled.tolist() == pytest.approx([0.238541] * 44, abs=1e-6)


# The cut


def ended(method: AnpVs, a_uc: Tensor) -> tuple[nn.Module, Masks, Tensor]:
    """The network and the masks at the end of a search that left the gates like this."""
    net, gating, state = started(method)
    gating.a_uc.data.copy_(a_uc)
    method.update(net, state, Progress(1, 1, 1), TASK)
    expected = gating.expected().detach()
    return net, method.finish(net, state, TASK), expected


def kept_channels(masks: Masks) -> list[int]:
    """Positions among all 44 channels, read off the columns."""
    columns = [masks[name].movedim(1, 0).flatten(1).any(dim=1) for name in masks]
    return torch.cat(columns[1:]).nonzero().flatten().tolist()


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_the_channels_of_the_lowest_expectation_go(sparsity: float) -> None:
    a_uc = torch.randn(44, generator=torch.Generator().manual_seed(5))
    _, masks, expected = ended(anp_vs(sparsity), a_uc)
    keep = 44 - int(44 * sparsity)
    assert kept_channels(masks) == sorted(expected.argsort(descending=True)[:keep].tolist())


@pytest.mark.parametrize("target", [True, False])
def test_the_network_ends_plain_and_computes_what_the_gates_left(target: bool) -> None:
    """All but the shut gates stay, whether that was asked for or came about."""
    shut = torch.arange(44) % 4 == 0
    method = anp_vs(0.25, target_sparsity=target)
    net, gating, state = started(method)
    gating.a_uc.data.copy_(torch.where(shut, -9.0, torch.linspace(-3, 3, 44)))
    method.update(net, state, Progress(1, 1, 1), TASK)
    batch = make_batch()
    logits = net.eval()(batch.images)
    masks = method.finish(net, state, TASK)
    assert kept_channels(masks) == (~shut).nonzero().flatten().tolist()
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert not any(isinstance(m, Gating) for m in net.modules())
    plain = bake(net, make_net(seed=5)).eval()
    # The masks are those of whole channels: rows as well as columns.
    units = ChannelUnits(plain, TASK.shape, "channel", 1, 1)
    assert list(units.kept(masks).values()) == [6, 12, 15]
    hold(plain, masks)
    torch.testing.assert_close(plain(batch.images), logits, rtol=1e-4, atol=1e-5)


def test_weights_are_folded_with_the_expectation_of_their_gate() -> None:
    a_uc = torch.linspace(-9, 3, 44)
    net, _, expected = ended(anp_vs(), a_uc)
    before = make_net().get_parameter("network.conv2.weight")
    after = net.get_parameter("network.conv2.weight")
    # Below the threshold too: what is kept all the same must be able to learn.
    assert float(expected[0]) < 1e-3
    torch.testing.assert_close(after, before * expected[None, :8, None, None])


@pytest.mark.parametrize(
    ("options", "opened", "expected"),
    [
        ({}, [3, 0, 20], [3, 1, 20]),
        ({"min_channels": 4}, [3, 0, 20], [4, 4, 20]),
        ({"min_channels": 4, "round_to": 4}, [3, 5, 20], [4, 8, 20]),
        ({"min_channels": 8, "round_to": 8}, [1, 9, 17], [8, 16, 20]),
    ],
)
def test_what_is_open_stays_in_the_least_width_that_is_allowed(
    options: dict[str, int], opened: list[int], expected: list[int]
) -> None:
    parts = []
    for width, count in zip(WIDTHS, opened, strict=True):
        gates = torch.full((width,), -9.5)
        gates[-count:] = torch.linspace(-1, 1, count) if count else -9.5
        parts.append(gates)
    # The sparsity that is named does not matter, not even where it cannot be met.
    method = anp_vs(0.97, target_sparsity=False, **options)
    assert not method.lands
    _, masks, _ = ended(method, torch.cat(parts))
    units = ChannelUnits(make_net(), TASK.shape, "channel", 1, 1)
    assert list(units.kept(masks).values()) == expected
    for kept, width, count in zip(units.channels(masks).values(), WIDTHS, opened, strict=True):
        assert kept[width - count :].all()


def test_widths_that_do_not_fit_the_budget_are_refused() -> None:
    method = anp_vs(0.9, min_channels=4)
    assert method.lands
    with pytest.raises(BadData, match="lower --sparsity, or --min-channels and --round-to"):
        ended(method, torch.zeros(44))


# A search


IMAGES = make_images()
SCHEDULE = Schedule(epochs=10, batch_size=14, lr=0.1, validate_every=0)


def test_gates_of_channels_that_no_one_reads_shut_first() -> None:
    net = make_net()
    fit(net, IMAGES, TASK, SCHEDULE, Memory())
    for name in ("conv2", "conv3", "fc"):
        net.get_parameter(f"network.{name}.weight").data[:, ::2] = 0.0
    # Weights as good as frozen, so that nobody begins to read the others.
    method = anp_vs(0.5, gate_lr=1.0, weight_lr=1e-9, kl=0.2, kl_warmup=0.0)
    trained = fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
    expected = gating_of(net).expected().detach()
    idle = torch.cat([torch.arange(width) % 2 == 0 for width in WIDTHS])
    assert float(expected[idle].max()) < float(expected[~idle].median())
    masks = method.finish(net, trained.state, TASK)
    assert sum(int(idle[channel]) for channel in kept_channels(masks)) <= 2


def test_without_the_divergence_gates_open() -> None:
    ends = []
    for kl in (0.0, 20.0):
        method = anp_vs(0.5, gate_lr=1.0, kl=kl, kl_warmup=0.0)
        net = make_net()
        fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
        ends.append(float(gating_of(net).expected().detach().mean()))
    assert ends[0] > ends[1] + 0.2


def test_suppression_lowers_the_vulnerability() -> None:
    gaps = []
    for suppression in (0.0, 30.0):
        net, method = make_net(), anp_vs(suppression=suppression, weight_lr=0.1)
        fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
        net.eval()
        adversarial = attacked(net, make_batch(30))
        _, clean = _forward(net, make_batch(30).images)
        _, moved = _forward(net, adversarial)
        gaps.append(float(distance(clean, moved).detach()))
    assert gaps[1] < 0.7 * gaps[0]


def test_a_search_resumed_from_a_checkpoint_ends_in_the_same_bits() -> None:
    method, schedule = anp_vs(), Schedule(epochs=3, batch_size=14, lr=0.1, validate_every=0)
    whole, memory = make_net(dropout=0.3), Memory()
    fit(whole, IMAGES, TASK, schedule, memory, method)
    for saved in memory.saves.values():
        resumed = make_net(seed=9, dropout=0.3)
        fit(resumed, IMAGES, TASK, schedule, Memory(saved), method)
        assert same(snapshot(resumed), snapshot(whole))


OUTSIDE: dict[str, Any] = {
    "kl": -1.0,
    "kl_warmup": 1.1,
    "suppression": -1e-4,
    "gate_start": -10.0,
    "gate_lr": 0.0,
    "weight_lr": 0.0,
    "granularity": "filter",
    "min_channels": 0,
    "round_to": 0,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_options_outside_their_ranges_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        anp_vs(**{name: OUTSIDE[name]})
