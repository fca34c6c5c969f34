"""RST: a random network of signed constants, of which only the choice of weights is learned."""

import math

import pytest
import torch
from torch import Tensor, nn
from toy import Memory, generator, make_batch, make_images, make_net, make_task, same

from advprune.masking import Scored, current_masks, maskings, plain_state, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation
from advprune.methods.rst import Rst
from advprune.models import prunable
from advprune.train import Schedule, fit

IMAGES = make_images(train=24, val=6)
TASK = make_task(steps=1)
SHAPES = {name: weight.shape for name, weight in prunable_weights(make_net()).items()}
SCHEDULE = Schedule(epochs=3, batch_size=12, lr=0.5, validate_every=0)


def trained_net(seed: int) -> nn.Module:
    """Weights, biases, batch norm parameters and statistics that are this seed's own."""
    net, draw = make_net(seed), generator(seed)
    with torch.no_grad():
        for value in net.get_submodule("network").state_dict().values():
            if value.is_floating_point():
                value.copy_(0.2 + torch.rand(value.shape, generator=draw))
            else:
                value.fill_(100 + seed)
    return net


def started(seed: int = 0, net_seed: int = 1, sparsity: float = 0.8) -> nn.Module:
    net = trained_net(net_seed)
    Rst(sparsity=sparsity).start(net, make_task(seed, steps=1), Optimisation(0.1, 5e-4, 10))
    return net


def originals(net: nn.Module) -> dict[str, Tensor]:
    return {n: m.parametrizations.weight.original.detach() for n, m, _ in maskings(net)}  # pyright: ignore


def scores(net: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, _, masking in maskings(net):
        assert isinstance(masking, Scored)
        found[name] = masking.scores.detach()
    return found


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_every_weight_is_one_constant_of_its_layer_with_a_random_sign(sparsity: float) -> None:
    net = started(sparsity=sparsity)
    assert originals(net).keys() == SHAPES.keys()
    for weight in originals(net).values():
        constant = math.sqrt(2 / (weight[0].numel() * (1 - sparsity)))
        assert torch.allclose(weight.abs(), torch.full_like(weight, constant), rtol=1e-6, atol=0)
        positive = float((weight > 0).float().mean())
        assert abs(positive - 0.5) < 3 * 0.5 / math.sqrt(weight.numel())
    for layer in prunable(net).values():
        assert layer.bias is None or not bool(layer.bias.any())


def test_batch_norm_only_normalises_and_nothing_but_scores_can_learn() -> None:
    net = started()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
            assert module.running_mean is not None and not bool(module.running_mean.any())
            assert module.running_var is not None and bool((module.running_var == 1).all())
    learning = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert len(learning) == len(SHAPES)
    assert all(name.endswith(".scores") for name in learning)


def test_scores_are_random_and_say_nothing_of_the_weights() -> None:
    net = started()
    weights = originals(net)
    for name, score in scores(net).items():
        bound = 1 / math.sqrt(score[0].numel())
        assert 0.9 * bound < float(score.abs().max()) <= bound
        assert abs(float(score.mean())) < 3 * bound / math.sqrt(3 * score.numel())
        assert abs(float(score.abs().mean()) - bound / 2) < bound / math.sqrt(score.numel())
        agree = float((score.sign() == weights[name].sign()).float().mean())
        assert abs(agree - 0.5) < 3 * 0.5 / math.sqrt(score.numel())
    # Masks follow the scores from the first step on, at one density everywhere.
    for name, mask in current_masks(net).items():
        score = scores(net)[name].abs()
        assert float(score[mask].min()) > float(score[~mask].max())
        assert abs(int(mask.sum()) - 0.2 * mask.numel()) < 1
    total = sum(shape.numel() for shape in SHAPES.values())
    assert sum(int(m.sum()) for m in current_masks(net).values()) == kept_count(total, 0.8)


def test_nothing_of_the_trained_network_survives() -> None:
    first, second = started(net_seed=1), started(net_seed=2)
    assert not same(trained_net(1).state_dict(), trained_net(2).state_dict())
    assert same(first.state_dict(), second.state_dict())


def test_the_seed_alone_decides_what_a_search_finds() -> None:
    found = []
    for net_seed, seed in [(1, 0), (2, 0), (1, 1)]:
        net, task, method = trained_net(net_seed), make_task(seed, steps=1), Rst(sparsity=0.8)
        state = fit(net, IMAGES, task, SCHEDULE, Memory(), method).state
        found.append((method.finish(net, state, task), plain_state(net)))
    (first, weights), (second, same_weights), (third, _) = found
    assert same(first, second)
    assert same(weights, same_weights)
    assert not any(torch.equal(first[name], third[name]) for name in SHAPES)


def test_a_search_learns_the_masks_and_moves_no_weight() -> None:
    net, method = trained_net(1), Rst(sparsity=0.8)
    state = fit(net, IMAGES, TASK, SCHEDULE, Memory(), method).state
    masks, fresh = method.finish(net, state, TASK), started()
    assert same(originals(net), originals(fresh))
    assert not same(masks, current_masks(fresh))
    for name, mask in masks.items():
        score = scores(net)[name].abs()
        assert float(score[mask].min()) >= float(score[~mask].max())
    # The gradient reaches weights that are not in the subnetwork as well.
    net.zero_grad()
    TASK.objective(net, make_batch()).value.backward()
    for name, _, masking in maskings(net):
        assert isinstance(masking, Scored)
        assert masking.scores.grad is not None
        assert bool(masking.scores.grad[~masks[name]].any())
