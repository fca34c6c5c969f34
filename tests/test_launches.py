"""On a GPU an attack's network is a few launches, and none that fails stops a training."""

import pytest
import torch
from attack_nets import conv_net, images
from torch import Tensor, nn

from advprune.attack_view import AttackView
from advprune.launches import Answering, launched, padded, worth_compiling
from advprune.stats import macs
from advprune.types import Classifier

X = images(6)


def quiet() -> nn.Module:
    return conv_net(norm=True).eval().requires_grad_(False)


class Recorder:
    """Stands for `torch.cuda.make_graphed_callables`: takes batches of one size alone."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, forward: Classifier, samples: tuple[Tensor]) -> Classifier:
        (sample,) = samples
        assert sample.requires_grad

        def replay(x: Tensor) -> Tensor:
            assert x.shape == sample.shape
            self.sizes.append(len(x))
            return forward(x)

        return replay


def test_smaller_batches_are_filled_up_and_each_image_stays_what_it_is() -> None:
    net = quiet()
    sizes: list[int] = []

    def ask(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return net(x)

    model = padded(ask, 6)
    for size in (6, 5, 1):
        x = X[:size].clone().requires_grad_(True)
        logits = model(x)
        assert torch.allclose(logits, net(X)[:size], atol=1e-6)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        assert gradient.shape == x.shape
        assert bool((gradient.flatten(1).abs().sum(dim=1) > 0).all())
    assert sizes == [6, 6, 6]


def test_the_recorded_network_answers_for_batches_of_every_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, net = Recorder(), quiet()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    model = launched(net, X, "fp32", asked=10)
    for size in (6, 4):
        assert torch.allclose(model(X[:size]), net(X[:size]), atol=1e-6)
    assert set(recorder.sizes) == {6}


def test_what_cannot_be_recorded_is_said_and_computed_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Classifier:
        raise RuntimeError("capture failed\nat great length")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    net = quiet()
    with pytest.warns(UserWarning, match=r"cannot be recorded \(capture failed\)$"):
        model = launched(net, X, "fp32", asked=10)
    assert torch.allclose(model(X), net(X), atol=1e-6)


def test_what_cannot_be_compiled_is_recorded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, **_: object) -> Classifier:
        raise RuntimeError("no compiler")

    recorder = Recorder()
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", recorder)
    with pytest.warns(UserWarning, match=r"cannot be compiled \(no compiler\)$"):
        launched(quiet(), X, "fp32", asked=10**15)
    assert recorder.sizes


def test_compiling_is_for_long_trainings() -> None:
    answering = Answering(quiet(), "bf16")
    enough = int(1e16 / macs(answering, (1, 8, 8)))
    assert worth_compiling(answering, X, enough + 1)
    assert not worth_compiling(answering, X, enough // 2)


@pytest.mark.gpu
@pytest.mark.parametrize("asked", [1, 10**15])
def test_on_a_gpu_it_answers_as_the_network_does(asked: int) -> None:
    net, x = quiet().cuda(), X.cuda()
    view = AttackView("fp32", asked)
    for factor in (1.0, 1.5):
        with torch.no_grad():
            next(net.parameters()).mul_(factor)
        with view.of(net, x) as model:
            for size in (6, 4):
                own, other = x[:size].clone(), x[:size].clone()
                expected, got = net(own.requires_grad_()), model(other.requires_grad_())
                assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)
                slopes = [
                    torch.autograd.grad(logits.square().sum(), at)[0].clone()
                    for logits, at in ((expected, own), (got, other))
                ]
                assert torch.allclose(*slopes, rtol=1e-2, atol=1e-3)
