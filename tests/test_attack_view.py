"""What the attack inside training asks is the network as it stands, in eval mode, and cheaper."""

import pytest
import torch
from attack_nets import conv_net, images
from torch import Tensor, nn

from advprune.attack_view import AttackView
from advprune.batches import Batch
from advprune.masking import Scored, attach, freeze_layers
from advprune.models import Architecture, build
from advprune.objectives import Objective
from advprune.precision import Precision, answer
from advprune.repro import ImageRandom
from advprune.types import Classifier, Threat

SHAPE = (1, 8, 8)
X = images(6, SHAPE)


def net(model: str = "digits_resnet", *, masked: bool = False) -> nn.Module:
    """In training mode, with batch norm statistics of its own."""
    made = build(Architecture(model, 10, SHAPE, (0.4,), (0.3,)), seed=0).train()
    made(images(64, SHAPE))
    if masked:
        freeze_layers(made)
        attach(made, lambda _, weight: Scored(weight, weight.numel() // 5))
    return made


def first_batch() -> Batch:
    return Batch(X, torch.arange(6), ImageRandom(0, torch.arange(6)))


def slope(model: Classifier, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    return gradient


def in_eval_mode(made: nn.Module) -> tuple[Tensor, Tensor]:
    modes = made.training
    made.eval()
    found = made(X).detach(), slope(made, X)
    made.train(modes)
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("model", ["digits_resnet", "preact_resnet18"])
def test_it_answers_as_the_network_does_and_follows_what_that_learns(
    model: str, masked: bool
) -> None:
    made, view = net(model, masked=masked), AttackView("fp32", 0)
    for _ in range(2):
        with view.of(made, X) as seen:
            assert seen is not made
            expected, gradient = in_eval_mode(made)
            assert torch.allclose(seen(X), expected, rtol=1e-4, atol=1e-4)
            assert torch.allclose(slope(seen, X), gradient, rtol=1e-2, atol=1e-4)
        assert made.training
        before = expected
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(1.1)
        made(images(64, SHAPE))  # moves the statistics of batch norm
        with view.of(made, X) as seen:
            assert not torch.allclose(seen(X), before, rtol=1e-2), "still what it was"


def test_new_masks_reach_it() -> None:
    made, view = net(masked=True), AttackView("fp32", 0)
    with view.of(made, X) as seen:
        before = seen(X)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, Scored):
                module.scores.copy_(module.scores.flip(0))
                module.refresh()
    with view.of(made, X) as seen:
        assert torch.allclose(seen(X), in_eval_mode(made)[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(seen(X), before, rtol=1e-2)


def test_half_precision_keeps_the_direction_and_answers_in_single() -> None:
    made, view = net(), AttackView("bf16", 0)
    with view.of(made, X) as seen:
        expected, gradient = in_eval_mode(made)
        got, direction = seen(X), slope(seen, X)
    assert got.dtype == direction.dtype == torch.float32
    assert not torch.equal(got, expected)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.cosine_similarity(direction.flatten(), gradient.flatten(), dim=0) > 0.99


def test_nothing_of_the_network_moves() -> None:
    made, view = net(masked=True), AttackView("bf16", 0)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    learning = [parameter.requires_grad for parameter in made.parameters()]
    with view.of(made, X) as seen:
        slope(seen, X)
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    assert [parameter.requires_grad for parameter in made.parameters()] == learning
    assert all(parameter.grad is None for parameter in made.parameters())
    assert all(module.training for module in made.modules())


def test_a_weight_that_moves_when_asked_is_asked_in_eval_mode() -> None:
    made = conv_net().train()
    nn.utils.parametrizations.spectral_norm(made[0])
    state = {name: value.clone() for name, value in made.state_dict().items()}
    with AttackView("fp32", 0).of(made, images(4)) as seen:
        assert seen is not made
    assert all(torch.equal(state[name], value) for name, value in made.state_dict().items())
    assert all(module.training for module in made.modules())


class Branching(nn.Module):
    """Cannot be traced: its graph depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv_net(norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_cannot_be_folded_is_asked_as_it_is(precision: Precision) -> None:
    made, x = Branching().train(), images(4)
    hooked = conv_net(norm=True).train()
    hooked[0].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2.0,))
    for one in (made, hooked):
        one.eval()
        expected = answer(one, x, precision)
        one.train()
        with AttackView(precision, 0).of(one, x) as seen:
            assert torch.allclose(seen(x), expected, rtol=1e-2, atol=1e-2)
            assert seen(x).dtype == torch.float32


@pytest.mark.parametrize("name", ["pgd", "trades", "mart", "mad"])
def test_an_objective_with_a_view_has_the_loss_and_gradient_of_one_without(name: str) -> None:
    plain = Objective(name, Threat(0.1), steps=3)  # pyright: ignore[reportArgumentType]
    found = []
    for viewed in (False, True):
        made = net(masked=True)  # anew: training moves the statistics that attacks see
        objective = plain.for_training(made, X, 6) if viewed else plain
        loss = objective(made, first_batch())
        parameters = [p for p in made.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss.value, parameters)
        found.append((loss, torch.cat([g.flatten() for g in gradients])))
    (expected, gradient), (got, other) = found
    # Where a gradient is all but zero its sign may differ, and a pixel with it.
    assert float(got.value.detach()) == pytest.approx(float(expected.value.detach()), rel=1e-3)
    assert got.correct == expected.correct
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.999


def test_training_in_half_precision_learns_in_single() -> None:
    made, other = net(masked=True), net(masked=True)
    half = Objective("trades", Threat(0.1), steps=2, precision="bf16").for_training(made, X, 6)
    single = Objective("trades", Threat(0.1), steps=2).for_training(other, X, 6)
    loss = half(made, first_batch())
    loss.value.backward()
    assert loss.value.dtype == torch.float32
    learned = [p for p in made.parameters() if p.requires_grad]
    assert {p.grad.dtype for p in learned if p.grad is not None} == {torch.float32}
    assert {p.dtype for p in made.state_dict().values()} <= {
        torch.float32,
        torch.bool,
        torch.int64,
    }
    expected = float(single(other, first_batch()).value.detach())
    assert float(loss.value.detach()) == pytest.approx(expected, rel=0.05)
    assert float(loss.value.detach()) != expected
