"""RSR: noise in the loss and nowhere else, a lasso on the weights, one cut at the end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import rsr as oracle
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import Memory, make_batch, make_images, make_net, make_task, same, snapshot

from advprune.errors import Refused
from advprune.frozen import frozen
from advprune.masking import maskings, prunable_weights
from advprune.masks import kept_count
from advprune.method import Optimisation, State
from advprune.methods.rsr import REACH, Noisy, Rsr, drawn
from advprune.models import prunable
from advprune.objectives import cross_entropy_attack
from advprune.train import Schedule, fit
from pipeline.resolve import resolve

TASK = make_task()
NAMES = [f"network.{layer}.weight" for layer in ("conv1", "conv2", "conv3", "fc")]
SHARED = Optimisation(0.1, 5e-4, steps=100)


def started(method: Rsr, net: nn.Module) -> State:
    return method.start(net, TASK, SHARED)


def alphas(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: it.alpha for name, _, it in maskings(net) if isinstance(it, Noisy)}


def scatter(net: nn.Module) -> None:
    """Another alpha for every channel."""
    for alpha in alphas(net).values():
        alpha.data.copy_(torch.linspace(-0.3, 0.9, alpha.numel()).view_as(alpha))


def numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


# The noise


def test_a_channel_deviates_by_its_alpha_and_the_spread_of_the_layer() -> None:
    net = make_net().train()
    started(Rsr(), net)
    scatter(net)
    before = prunable_weights(net)
    torch.manual_seed(3)
    with drawn(net):
        seen = {name: layer.weight.detach() for name, layer in prunable(net).items()}
    torch.manual_seed(3)
    for name in NAMES:
        eta = torch.randn_like(before[name])
        weight, alpha = before[name].double(), alphas(net)[name].detach().double()
        expected = oracle.noisy(weight.numpy(), alpha.flatten().numpy(), eta.double().numpy())
        np.testing.assert_allclose(seen[name].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_forward_draws_for_itself() -> None:
    net = make_net().train()
    started(Rsr(), net)
    with drawn(net):
        assert not torch.equal(net(make_batch().images), net(make_batch().images))


def test_outside_of_the_loss_there_is_none_and_nothing_is_drawn() -> None:
    net, plain = make_net().train(), make_net().train()
    started(Rsr(), net)
    state = torch.get_rng_state()
    assert torch.equal(net(make_batch().images), plain(make_batch().images))
    with pytest.raises(KeyError), drawn(net):
        raise KeyError
    assert same(prunable_weights(net), prunable_weights(plain))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["pgd", "trades", "fgsm-rs"])
def test_an_attack_inside_the_loss_asks_the_weights_themselves(name: str) -> None:
    net, plain = make_net().train(), make_net().train()
    started(Rsr(), net)
    task = make_task(name=name)
    objective = task.objective.for_training(net, make_batch().images, 100)
    with drawn(net):
        state = torch.get_rng_state()
        with objective.asked(net, make_batch().images) as viewed:
            answer = viewed(make_batch().images)
        with frozen(net):
            at_rest = net(make_batch().images)
        assert torch.equal(torch.get_rng_state(), state)
    expected = plain.eval()(make_batch().images)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(at_rest, expected)


# The loss


@pytest.mark.parametrize(("clean", "lasso"), [(0.5, 0.01), (0.0, 0.0), (1.0, 0.1)])
def test_value_and_gradients_are_those_by_hand(clean: float, lasso: float) -> None:
    """The same two passes by plain networks that hold what was drawn."""
    net = make_net().train()
    method = Rsr(clean=clean, lasso=lasso)
    state = started(method, net)
    scatter(net)
    weights = {name: weight.clone() for name, weight in prunable_weights(net).items()}
    torch.manual_seed(4)
    loss = method.loss(net, state, make_batch(), TASK)
    loss.value.backward()

    attacked = cross_entropy_attack(TASK.objective, make_net().train(), make_batch())
    torch.manual_seed(4)
    value = lasso * oracle.lasso(numpy(weights))
    of_weight = {name: lasso * np.sign(weight) for name, weight in numpy(weights).items()}
    of_alpha = {name: np.zeros(len(weight)) for name, weight in weights.items()}
    for images, share in ((attacked, 1.0 - clean), (make_batch().images, clean)):
        plain, drawn_eta = make_net().train(), {}
        for name, layer in prunable(plain).items():
            drawn_eta[name] = torch.randn_like(weights[name]).double().numpy()
            alpha = alphas(net)[name].detach().double().flatten().numpy()
            held = oracle.noisy(numpy(weights)[name], alpha, drawn_eta[name])
            layer.weight.data = torch.from_numpy(held).float()
        term = F.cross_entropy(plain(images), make_batch().labels)
        layers = prunable(plain)
        outer = torch.autograd.grad(term, [layer.weight for layer in layers.values()])
        value += share * term.item()
        for name, slope in zip(layers, outer, strict=True):
            slope = share * slope.double().numpy()
            of_weight[name] = of_weight[name] + slope
            of_alpha[name] += oracle.alpha_gradient(numpy(weights)[name], drawn_eta[name], slope)

    assert loss.value.item() == pytest.approx(value, rel=1e-4)
    for name, layer, _ in maskings(net):
        original: nn.Parameter = layer.parametrizations.weight.original  # pyright: ignore
        assert original.grad is not None
        np.testing.assert_allclose(original.grad.numpy(), of_weight[name], rtol=1e-3, atol=2e-5)
        slope = alphas(net)[name].grad
        assert slope is not None
        np.testing.assert_allclose(slope.flatten().numpy(), of_alpha[name], rtol=1e-3, atol=2e-5)


def test_alpha_learns_without_decay_and_starts_at_a_quarter() -> None:
    net = make_net()
    method = Rsr()
    started(method, net)
    optimiser = method.optimiser(method.groups(net, SHARED), SHARED)
    others, apart = optimiser.param_groups
    assert (others["weight_decay"], apart["weight_decay"]) == (5e-4, 0.0)
    assert {id(p) for p in apart["params"]} == {id(alpha) for alpha in alphas(net).values()}
    assert len(others["params"]) + len(apart["params"]) == len(list(net.parameters()))
    assert [tuple(alpha.shape) for alpha in alphas(net).values()] == [
        (8, 1, 1, 1),
        (16, 1, 1, 1),
        (20, 1, 1, 1),
        (3, 1),
    ]
    assert all((alpha == 0.25).all() for alpha in alphas(net).values())


def test_noise_learns_and_the_lasso_makes_weights_small() -> None:
    lengths = []
    for lasso in (0.0, 0.03):
        net, images = make_net(), make_images(train=24, val=9)
        schedule = Schedule(epochs=6, batch_size=12, lr=0.1, validate_every=0)
        fit(net, images, TASK, schedule, Memory(), Rsr(lasso=lasso))
        assert all(len(alpha.unique()) > 1 for alpha in alphas(net).values())
        lengths.append(oracle.lasso(numpy(prunable_weights(net))))
    assert lengths[1] < 0.9 * lengths[0]


@pytest.mark.parametrize(("steps", "lr", "momentum"), [(1000, 0.1, 0.9), (2000, 0.02, 0.0)])
def test_by_itself_lambda_takes_a_weight_as_far_in_any_search(
    steps: int, lr: float, momentum: float
) -> None:
    optimisation = Optimisation(lr, 0.0, steps, momentum)
    slope = float(Rsr().start(make_net(), TASK, optimisation)["lasso"])
    schedule = Schedule(epochs=1, lr=lr)
    moved = velocity = 0.0
    for step in range(steps):
        velocity = momentum * velocity + slope
        moved += lr * schedule.rate((step + 0.5) / steps) * velocity
    assert moved == pytest.approx(REACH, rel=0.05)
    assert float(Rsr(lasso=0.0).start(make_net(), TASK, optimisation)["lasso"]) == 0.0


# The cut


def test_the_largest_weights_of_all_layers_stay_and_the_noise_goes() -> None:
    net, fresh = make_net(), make_net()
    method = Rsr(sparsity=0.8)
    state = started(method, net)
    scatter(net)
    masks = method.finish(net.train(), state, TASK)
    weights = prunable_weights(fresh)
    total = sum(weight.numel() for weight in weights.values())
    expected = oracle.largest(numpy(weights), kept_count(total, 0.8))
    assert all(np.array_equal(masks[name].numpy(), expected[name]) for name in NAMES)
    assert same(snapshot(net), snapshot(fresh))
    assert not any(parametrize.is_parametrized(module) for module in net.modules())


def test_a_budget_that_no_layer_can_meet_is_refused_before_the_run() -> None:
    net = make_net()
    with pytest.raises(Refused, match="lower the sparsity"):
        started(Rsr(sparsity=0.999), net)
    assert same(snapshot(net), snapshot(make_net()))


def test_on_cifar10_the_search_is_the_whole_training() -> None:
    recipe, _ = resolve({"preset": "cifar10", "method": "rsr"}, environment={})
    assert (recipe.standard.epochs, recipe.adversarial.epochs) == (0, 0)
    assert (recipe.prune.epochs, recipe.prune.lr, recipe.prune.weight_decay) == (160, 0.1, 3e-4)
    assert recipe.attack_steps == 7
