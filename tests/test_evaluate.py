"""Verdicts are per image, over all images, and cannot be had with a broken attack."""

import pytest
import torch
from attack_nets import conv_net, digit_net, digits
from sklearn.metrics import accuracy_score

from advprune.attacks.pgd import pgd
from advprune.data import Split
from advprune.evaluate import (
    InvalidEvaluation,
    accuracy,
    craft,
    is_correct,
    overstep,
    predict,
    survival,
    survives,
)
from advprune.types import Threat

THREAT = Threat(0.1)


def test_bytes_and_floats_are_the_same_images() -> None:
    split = digits()
    net = digit_net()
    from_bytes = predict(net, split.images)
    assert torch.equal(from_bytes, predict(net, split.images.float() / 255))
    assert torch.allclose(from_bytes, predict(net, split.images, batch_size=7), atol=1e-5)
    assert from_bytes.shape == (120, 10)
    assert not from_bytes.requires_grad


def test_prediction_is_in_eval_mode_and_leaves_the_mode_alone() -> None:
    net = conv_net(norm=True, dropout=0.5).train()
    buffers = [buffer.clone() for buffer in net.buffers()]
    images = digits().images
    assert torch.equal(predict(net, images), predict(net, images))
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))


def test_accuracy_is_that_of_scikit_learn() -> None:
    split = digits()
    logits = predict(digit_net(), split.images)
    expected = accuracy_score(split.labels.numpy(), logits.argmax(dim=1).numpy())
    assert accuracy(is_correct(logits, split.labels)) == pytest.approx(expected)
    assert accuracy(survival(digit_net(), split)) == pytest.approx(expected)


def test_logits_that_are_not_finite_are_never_correct() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[nan, 0.0], [inf, 0.0], [1.0, 0.0], [nan, nan]])
    assert is_correct(logits, torch.tensor([0, 0, 0, 0])).tolist() == [False, False, True, False]


def test_survival_is_per_image_and_counts_clean_errors_as_broken() -> None:
    net, split = digit_net(THREAT), digits()
    # An attack that helps: it shows an image that is right for whatever label is asked for.
    given = predict(net, split.images).argmax(dim=1)
    helpful = torch.stack([split.images[given == label][0] for label in range(10)]) / 255
    swapped = Split(split.images, (split.labels + torch.arange(120) % 2) % 10, split.indices)
    flags = survives(net, swapped, Threat(1.0), 0, lambda model, x, y, threat, rng: helpful[y])
    assert torch.equal(flags, given == swapped.labels)
    assert 0.3 < accuracy(flags) < 0.7

    robust = survives(net, split, THREAT, 0, pgd)
    adversarial = craft(net, split, THREAT, 0, pgd)
    expected = [
        bool(net(x[None]).argmax() == y and net(image[None] / 255).argmax() == y)
        for x, image, y in zip(adversarial, split.images, split.labels, strict=True)
    ]
    assert robust.tolist() == expected
    assert 0.1 < accuracy(robust) < accuracy(survival(net, split))


def test_the_quick_measurement_is_at_least_as_strong_as_plain_pgd() -> None:
    net, split = digit_net(THREAT), digits()
    quick = accuracy(survival(net, split, THREAT, 1, steps=20))
    assert 0.1 < quick <= accuracy(survives(net, split, THREAT, 1, pgd)) + 0.01


def test_random_starts_belong_to_identities_not_to_positions() -> None:
    net, split = digit_net(), digits()
    order = torch.arange(len(split)).flip(0)
    turned = Split(split.images[order], split.labels[order], split.indices[order])
    one_step = lambda *case: pgd(*case, steps=1)  # noqa: E731
    straight = craft(net, split, THREAT, 5, one_step)
    assert torch.allclose(craft(net, turned, THREAT, 5, one_step), straight[order], atol=1e-6)
    other = Split(split.images, split.labels, split.indices + 1)
    assert not torch.allclose(craft(net, other, THREAT, 5, one_step), straight, atol=1e-3)


@pytest.mark.parametrize(
    ("cheat", "excess"),
    [
        (lambda x: x + 0.11, 0.01),
        (lambda x: x.clamp(0.0, 1.0) - 0.05, 0.05),
        (lambda x: x * float("nan"), float("inf")),
    ],
)
def test_an_attack_outside_its_threat_model_is_invalid(cheat, excess: float) -> None:
    split = digits()
    x = split.images / 255
    cheated = cheat(x)
    threat = Threat(0.1)
    assert overstep(cheated, x, threat) >= excess - 1e-6
    with pytest.raises(InvalidEvaluation, match=r"outside the ball of 0\.1") as refusal:
        craft(digit_net(), split, threat, 0, lambda model, x, y, threat, rng: cheat(x))
    assert refusal.value.exit_code == 11


def test_staying_inside_is_no_overstep() -> None:
    x = digits().images / 255
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    inside = (x + 0.1 * (2 * noise - 1)).clamp(0, 1)
    assert overstep(inside, x, Threat(0.1)) <= 1e-7
