"""HARP-r learns rates alone, HARP-S scores alone: then it is HYDRA; layers go by their names."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Memory, make_images, make_net, make_task, same

from advprune.allocate import allocate
from advprune.masking import current_masks, maskings, prunable_weights
from advprune.masks import keep_top, kept_count
from advprune.method import Optimisation, Progress, PruningMethod
from advprune.methods.harp import Harp
from advprune.methods.hydra import Hydra
from advprune.methods.magnitude import Magnitude
from advprune.rates import rate_of, rated
from advprune.train import Schedule, fit

IMAGES = make_images()
TASK = make_task(steps=1)
SCHEDULE = Schedule(epochs=4, batch_size=14, lr=0.2, validate_every=0)
SIZES = {name: weight.numel() for name, weight in prunable_weights(make_net()).items()}
BUDGET = {"annealing": "budget", "start_density": 0.6, "rate_lr": 0.5}
# A floor for which a quarter survives the way to a rate and back in float32 without rounding up:
# a density one bit above it would keep one weight more in each layer.
FLOOR = 0.1

every_allocation = pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])
every_learning = pytest.mark.parametrize("learn", ["both", "rates", "scores"])


def harp(**options: Any) -> Harp:
    return Harp(**options)


class Watching(Memory):
    """Keeps what a network's masks and scores were after every step."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.masks: list[dict[str, Tensor]] = []
        self.scores: list[dict[str, Tensor]] = []

    def step(self, progress: Progress, metrics) -> None:
        self.masks.append(current_masks(self.net))
        self.scores.append(scores_of(self.net))


def scores_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: m.get_parameter("scores").detach().clone() for name, _, m in maskings(net)}


def searched(method: PruningMethod) -> tuple[nn.Module, Watching]:
    """The network after the search, and its masks after every step and after the last word."""
    net = make_net()
    seen = Watching(net)
    trained = fit(net, IMAGES, TASK, SCHEDULE, seen, method)
    seen.masks.append(method.finish(net, trained.state, TASK))
    return net, seen


def check_equal(first: PruningMethod, second: PruningMethod) -> None:
    """Bitwise: the same masks at every step, the same scores, the same batch norms at the end."""
    (net, seen), (other, others) = searched(first), searched(second)
    assert all(same(a, b) for a, b in zip(seen.masks, others.masks, strict=True))
    assert not same(seen.masks[0], seen.masks[-1])  # They learn.
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("rate")}
    assert same(state, other.state_dict())


# HARP-S and HYDRA


@every_allocation
@pytest.mark.parametrize("annealing", ["gamma", "budget"])
def test_with_fixed_densities_harp_is_hydra_with_the_same_allocation(
    allocation: str, annealing: str
) -> None:
    fixed = harp(
        sparsity=0.8, learn="scores", start_allocation=allocation, annealing=annealing, gamma=5.0
    )
    check_equal(fixed, Hydra.model_validate({"sparsity": 0.8, "allocation": allocation}))


@pytest.mark.parametrize("annealing", ["gamma", "budget"])
def test_with_rates_frozen_at_uniform_harp_is_hydra(annealing: str) -> None:
    # Every layer's size is a multiple of four, so a quarter of each is the uniform allocation.
    assert all(size % 4 == 0 for size in SIZES.values())
    # So small a learning rate moves no float32; L_hw is zero with zero gradient at the target.
    frozen = harp(
        sparsity=0.75,
        start_allocation="uniform",
        start_density=0.25,
        annealing=annealing,
        rate_lr=1e-30,
        rate_weight_decay=0.0,
        gamma=1e-30,
        ramp=0.5,
        floor=FLOOR,
    )
    check_equal(frozen, Hydra(sparsity=0.75, allocation="uniform"))


def test_fixed_densities_are_the_target_s_from_the_first_step() -> None:
    # The start density is that of learned rates; the released code leaves HARP-S there.
    net, seen = searched(harp(sparsity=0.8, learn="scores", start_density=0.6))
    kept = allocate("erk", prunable_weights(make_net()), 0.8)
    assert sum(kept.values()) == kept_count(sum(SIZES.values()), 0.8)
    for masks in seen.masks:
        assert {name: int(mask.sum()) for name, mask in masks.items()} == kept
    assert rated(net) == {}


# HARP-r


def test_learning_rates_alone_leaves_the_scores_as_they_start() -> None:
    start = make_net()
    harp(learn="rates").start(start, TASK, Optimisation(0.1, 0.0, 12))
    expected = scores_of(start)
    net, seen = searched(harp(sparsity=0.8, learn="rates", **BUDGET))
    assert all(same(scores, expected) for scores in [*seen.scores, scores_of(net)])
    assert all(m.get_parameter("scores").grad is None for _, _, m in maskings(net))
    # Where both learn, they do not stay.
    both, _ = searched(harp(sparsity=0.8, **BUDGET))
    assert not any(torch.equal(value, expected[name]) for name, value in scores_of(both).items())


def test_learning_rates_alone_keeps_the_largest_weights_of_each_layer() -> None:
    weights = prunable_weights(make_net())
    _, seen = searched(harp(sparsity=0.8, learn="rates", **BUDGET))
    for masks in seen.masks:
        for name, mask in masks.items():
            assert torch.equal(mask, keep_top(weights[name].abs(), int(mask.sum())))
    # How many of each layer, is learned: not what the same rule would give at once.
    final = {name: int(mask.sum()) for name, mask in seen.masks[-1].items()}
    assert sum(final.values()) == kept_count(sum(SIZES.values()), 0.8)
    fixed = Magnitude(sparsity=0.8, allocation="erk").finish(make_net(), {}, TASK)
    assert final != {name: int(mask.sum()) for name, mask in fixed.items()}


@every_learning
def test_the_optimiser_moves_what_is_learned_and_batch_norm(learn: str) -> None:
    net, optimisation = make_net(), Optimisation(0.1, 0.0, 12)
    method = harp(learn=learn)
    method.start(net, TASK, optimisation)
    mine = {id(p) for group in method.groups(net, optimisation) for p in group["params"]}
    learning = {name.rpartition(".")[2] for name, p in net.named_parameters() if id(p) in mine}
    parts = {"both": {"rate", "scores"}, "rates": {"rate"}, "scores": {"scores"}}
    assert learning == parts[learn] | {"weight", "bias"}
    layers = [net.get_submodule(name.removesuffix(".weight")) for name in SIZES]
    assert not any(id(layer.bias) in mine for layer in layers)


# Names


class Shuffled(nn.Module):
    """The layers of a network under their names, registered in another order."""

    def __init__(self, network: nn.Module, order: list[str]) -> None:
        super().__init__()
        self.names = [name for name, _ in network.named_children()]
        for name in order:
            self.add_module(name, network.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


def shuffled(last: str) -> nn.Module:
    """The same network, whose last layer to be registered is this one, all others backwards."""
    net = make_net()
    normalize, network = net.get_submodule("normalize"), net.get_submodule("network")
    names = sorted((name for name, _ in network.named_children()), reverse=True)
    names.sort(key=lambda name: name == last)
    parts = OrderedDict(normalize=normalize, network=Shuffled(network, names))
    return nn.Sequential(parts)


@every_learning
@every_allocation
@pytest.mark.parametrize("last", ["conv1", "conv3"])
def test_densities_belong_to_names_whatever_the_order_of_the_layers(
    learn: str, allocation: str, last: str
) -> None:
    method = harp(
        sparsity=0.8, learn=learn, start_allocation=allocation, annealing="gamma", start_density=0.4
    )
    ends: list[dict[str, Tensor]] = []
    for net in (make_net(), shuffled(last)):
        state = method.start(net, TASK, Optimisation(0.1, 5e-4, 12))
        started = current_masks(net)
        for name, masking in rated(net).items():  # what a search might have learned
            masking.rate.data.fill_(rate_of(0.1 + 0.3 * SIZES[name] / 2000, masking.floor))
            masking.rate.data.sub_(1.0)
        finished = method.finish(net, state, TASK)
        ends.append(started | {f"finished/{name}": mask for name, mask in finished.items()})
    assert list(ends[0]) != list(ends[1])
    assert same(*ends)
    counts = {int(ends[0][name].sum()) for name in SIZES}
    assert len(counts) == len(SIZES)  # no two layers could have been mixed up unseen
