"""Boosting tickets: FGSM, sizes in units of their layer's mean, and everything back at the end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import tickets as oracle
from oracles.ranking import largest
from toy import EPS, Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.masking import bare, current_masks, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation
from advprune.methods.li20 import Li20, in_means
from advprune.train import Schedule, fit
from pipeline.resolve import resolve

IMAGES = make_images()
TASK = make_task(steps=2)
SCHEDULE = Schedule(epochs=3, batch_size=14, lr=0.1, validate_every=0)


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_the_largest_in_units_of_their_layers_mean_stay(sparsity: float) -> None:
    net = make_net()
    # Layers of very different scales: a plain global ranking would empty some.
    for factor, weight in enumerate(prunable_weights(net).values(), start=1):
        weight.mul_(10.0**-factor)
    arrays = {name: weight.numpy() for name, weight in prunable_weights(net).items()}
    expected = largest(
        oracle.in_means(arrays), kept_count(sum(a.size for a in arrays.values()), sparsity)
    )
    assert all(kept.any() for kept in expected.values())
    method = Li20(sparsity=sparsity)
    masks = method.finish(net, method.start(net, TASK, Optimisation(0.1, 0.0, 0)), TASK)
    assert all(np.array_equal(masks[name].numpy(), kept) for name, kept in expected.items())


def test_the_mean_size_of_a_layer_is_one_and_a_layer_of_zeros_stays_finite() -> None:
    for weight in prunable_weights(make_net()).values():
        assert in_means(weight).mean().item() == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(in_means(torch.zeros(3)), torch.zeros(3))


def test_it_trains_on_one_full_step_from_the_image_itself() -> None:
    batch = make_batch()
    images = batch.images.clone().requires_grad_()
    loss = F.cross_entropy(make_net().eval()(images), batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    attacked = (batch.images + EPS * gradient.sign()).clamp(0.0, 1.0)
    expected = F.cross_entropy(make_net().train()(attacked), batch.labels)
    # Neither the number of the attack's steps nor a random start matter.
    for steps, seed in ((1, 5), (7, 6)):
        given = make_batch(seed=seed)
        loss = Li20().loss(make_net().train(), {}, given, make_task(steps=steps))
        assert loss.value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_trained_weights_choose_and_those_of_the_start_remain() -> None:
    method, net = Li20(sparsity=0.7), make_net()
    start = snapshot(net)
    trained = fit(net, IMAGES, TASK, SCHEDULE, Memory(), method)
    assert not same(snapshot(net), start)
    arrays = {name: weight.numpy().copy() for name, weight in prunable_weights(net).items()}
    total = sum(array.size for array in arrays.values())
    expected = largest(oracle.in_means(arrays), kept_count(total, 0.7))
    masks = method.finish(net, trained.state, TASK)
    assert all(np.array_equal(masks[name].numpy(), kept) for name, kept in expected.items())
    assert same(current_masks(net), masks)
    with bare(net):
        assert same(snapshot(net), start)
    # Which are not the ones that the start would have chosen.
    other = make_net()
    untrained = method.finish(other, method.start(other, TASK, Optimisation(0.1, 0.0, 0)), TASK)
    assert not same(untrained, masks)


def test_the_search_is_cheap_and_slow_and_the_ticket_trains_in_full() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "li20"}, environment={})
    assert (recipe.standard.epochs, recipe.adversarial.epochs) == (0, 0)
    assert (recipe.prune.epochs, recipe.prune.lr) == (20, 0.05)
    assert recipe.prune.warmup > 0
    assert (recipe.finetune.epochs, recipe.finetune.lr, recipe.attack_steps) == (100, 0.1, 10)
