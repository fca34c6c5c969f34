"""MAD: the masks lower the loss, the scores are the oracle's, the counts are exact."""

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import mad as oracle
from surveyed_nets import Looped, close, joined, largest, precise, prefixed
from torch import Tensor, nn
from toy import EPS, generator, make_batch, make_images, make_net, make_task, same, snapshot

from advprune import objectives
from advprune.attacks.pgd import starting_point
from advprune.batches import Batch
from advprune.masking import prunable_weights
from advprune.masks import kept_count
from advprune.methods import mad
from advprune.methods.mad import OPEN, SHUT, Mad
from advprune.models import logits_layer, prunable
from advprune.repro import ImageRandom, seeded
from advprune.types import Masks, Threat

STEPS = 2
TASK = make_task(steps=STEPS)
HEAD = logits_layer(make_net())
SHAPES = {name: weight.shape for name, weight in prunable_weights(make_net()).items()}


def make_grouped() -> nn.Module:
    """A depthwise separable convolution, as in MobileNet, with ReLUs in place."""
    with seeded(4):
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(inplace=True),
            nn.Conv2d(6, 8, 1, groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(72, 3),
        )


def batch64(count: int = 8) -> Batch:
    batch = make_batch(count)
    return Batch(batch.images.double(), batch.labels, batch.random)


def attacked(net: nn.Module, batch: Batch) -> Tensor:
    """What the paper's attack makes of the batch; draws from its streams."""
    start = starting_point(batch.images, Threat(EPS), batch.random, "uniform")
    return oracle.attack(net, batch.images, start, batch.labels, EPS, 2.3 * EPS / STEPS, STEPS)


def own(net: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of convolutions and linear layers."""
    return {
        f"{name}.{kind}": value.detach()
        for name, layer in oracle.layers_of(net).items()
        for kind, value in layer.named_parameters()
    }


def random_state(seed: int = 0) -> dict[str, Tensor]:
    draw = generator(seed)
    return {f"scores/{n}": torch.randn(s, generator=draw).double() for n, s in SHAPES.items()}


def finish(state: dict[str, Tensor], **options: Any) -> Masks:
    return Mad(**options).finish(make_net(), state, TASK)


# The soft masks


def test_f_is_a_softplus_that_opens_at_one_and_shuts_at_one_in_ten_thousand() -> None:
    assert float(F.softplus(torch.tensor(OPEN).double())) == pytest.approx(1.0, rel=1e-6)
    assert float(F.softplus(torch.tensor(SHUT).double())) == pytest.approx(1e-4, rel=1e-5)
    assert pytest.approx(math.log(math.e - 1)) == OPEN
    assert pytest.approx(-9.2102, abs=1e-4) == SHUT


def test_masks_lower_the_loss_and_leave_the_network_as_it_was() -> None:
    net, batch = make_net(dropout=0.3), make_batch()
    net.eval()
    net.get_submodule("network.bn1").train()
    modes = [module.training for module in net.modules()]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(net)
    masks = mad.minimising_masks(net, own(net), batch.images, batch.labels)
    assert same(snapshot(net), before)
    assert [module.training for module in net.modules()] == modes
    for parameter in net.parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None and bool((parameter.grad == 1).all())
    # And the weights under these masks classify these images better.
    masked = copy.deepcopy(net).eval()
    for name, mask in masks.items():
        masked.get_parameter(name).data *= F.softplus(mask)
    with torch.no_grad():
        loss = F.cross_entropy(net.eval()(batch.images), batch.labels)
        assert F.cross_entropy(masked(batch.images), batch.labels) < 0.8 * loss


@pytest.mark.parametrize("lr", [0.1, 5.0])
def test_masks_stay_between_shut_and_open(lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mad, "MASK_LR", lr)
    net, batch = make_net().eval(), make_batch()
    masks = mad.minimising_masks(net, own(net), batch.images, batch.labels)
    assert masks.keys() == own(net).keys()
    values = torch.cat([mask.flatten() for mask in masks.values()])
    assert float(values.max()) == pytest.approx(OPEN, abs=1e-6)
    assert float(values.min()) >= SHUT - 1e-6
    if lr == 5.0:
        assert float(values.min()) == pytest.approx(SHUT, abs=1e-6)
    # Some are held, and some are not.
    assert 0.01 < float((values == values.max()).float().mean()) < 0.99


# The scores


@pytest.mark.parametrize("delta", ["masked", "full"])
@pytest.mark.parametrize("make", [make_net, make_grouped, Looped])
def test_the_scores_are_those_of_the_factors_built_as_matrices(make, delta: Any) -> None:
    net = precise(make())
    got = Mad(delta=delta).assess(net, batch64(), TASK)
    assert not any(score.requires_grad for score in got.values())
    batch = batch64()
    expected = oracle.scores(net, attacked(net, batch), batch.labels, delta)
    assert got.keys() == prunable(net).keys()
    assert all(bool(score.any()) for name, score in expected.items() if "never" not in name)
    assert close(got, expected, 1e-6)


def test_full_changes_ignore_the_soft_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mad, "minimising_masks")
    Mad(delta="full").assess(make_net().eval(), make_batch(), TASK)


def test_masks_that_stay_open_score_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mad, "MASK_STEPS", 0)
    scores = Mad().assess(precise(make_net()), batch64(), TASK)
    # f(f_inv(1)) may differ from one by a rounding error, which enters squared.
    assert all(float(score.abs().max()) < 1e-25 for score in scores.values())


def test_a_layer_that_is_never_called_scores_zero() -> None:
    for delta in ("masked", "full"):
        scores = Mad(delta=delta).assess(Looped().eval(), make_batch(), TASK)
        assert bool((scores["never.weight"] == 0).all())
        assert all(bool(s.any()) for name, s in scores.items() if name != "never.weight")


@pytest.mark.parametrize("steps", [2, 10])
def test_the_attack_is_within_the_threat_and_steps_as_in_the_paper(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(net: nn.Module, x: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append({"x": x, "result": attack(net, x, *args, **options)} | options)
        return seen[-1]["result"]

    attack = objectives.pgd
    monkeypatch.setattr(objectives, "pgd", watched)
    Mad().assess(make_net().eval(), make_batch(), make_task(steps=steps))
    (call,) = seen
    assert call["steps"] == steps
    assert call["step_size"] == pytest.approx(2.3 * EPS / steps)
    moved = call["result"] - make_batch().images
    assert torch.equal(call["x"], make_batch().images)
    assert 0.5 * EPS < float(moved.abs().max()) <= EPS + 1e-6
    assert float(call["result"].min()) >= 0 and float(call["result"].max()) <= 1


def test_every_image_twice_gives_the_same_mask() -> None:
    net, batch = precise(make_net()), make_batch()
    index = torch.arange(8).repeat_interleave(2)
    random = ImageRandom(5, torch.arange(8)[index])
    double = Batch(batch.images.double()[index], batch.labels[index], random)
    masks = []
    for each in (batch64(), double):
        state = prefixed(Mad().assess(net, each, TASK))
        masks.append(Mad(sparsity=0.7).finish(net, state, TASK))
    assert same(*masks)


def test_it_surveys_augmented_images_and_all_of_them() -> None:
    assert Mad().augmented
    assert Mad().batches_needed(7) == 7
    assert make_images().augment == "none"  # what the toys offer


# The masks


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.85, 0.95])
def test_head_rows_keep_the_same_number_each_and_convolutions_the_rest(sparsity: float) -> None:
    masks = finish(random_state(), sparsity=sparsity)
    sizes = {name: shape.numel() for name, shape in SHAPES.items()}
    rows, features = SHAPES[HEAD]
    per_row = features - math.floor(sparsity * features + 1e-9)
    assert masks[HEAD].sum(dim=1).tolist() == [per_row] * rows
    total = sum(sizes.values())
    kept = kept_count(total, sparsity)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept
    # One signed order of all that is not the head; the largest scores stay.
    rest = [name for name in SHAPES if name != HEAD]
    flat = joined({n: random_state()[f"scores/{n}"] for n in rest}, rest)
    assert np.array_equal(joined(masks, rest), largest(flat, kept - rows * per_row))


@pytest.mark.parametrize("order", ["signed", "abs"])
def test_the_lowest_go_signed_or_by_magnitude(order: Any) -> None:
    state = random_state()
    masks = finish(state, sparsity=0.5, order=order)
    for row, mask in zip(state[f"scores/{HEAD}"].numpy(), masks[HEAD].numpy(), strict=True):
        key = np.abs(row) if order == "abs" else row
        assert np.array_equal(mask, largest(key, 10))
    conv = next(iter(SHAPES))
    score, kept = state[f"scores/{conv}"], masks[conv]
    if order == "signed":
        assert float(score[kept].min()) > float(score[~kept].max())
    else:
        assert float(score[kept].abs().min()) > float(score[~kept].abs().max())
        assert float(score[kept].min()) < 0


@pytest.mark.parametrize("order", ["signed", "abs"])
@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_of_channels_the_sum_of_their_scores_is_ranked(granularity: Any, order: Any) -> None:
    state, options = random_state(), {"granularity": granularity, "order": order}
    masks = finish(state, sparsity=0.5, min_channels=1, round_to=1, **options)
    names = list(SHAPES)  # each layer is read by the next one, and makes channels for it
    sums = {}
    for maker, reader in pairwise(names):
        layer, axis = (maker, 0) if granularity == "filter" else (reader, 1)
        score = state[f"scores/{layer}"].movedim(axis, 0).flatten(1).sum(dim=1)
        sums[maker] = score.abs() if order == "abs" else score
    flat = np.concatenate([sums[name].numpy() for name in sums])
    kept = np.concatenate([masks[name].flatten(1).any(dim=1).numpy() for name in sums])
    assert np.array_equal(kept, largest(flat, len(flat) // 2))
