"""Every registered method, in every variant, keeps the contract; its file's name picks it up."""

import math

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from searching import IMAGES, NAMES, SCHEDULE, SEARCHES, SURVEYS, VARIANTS, make, search
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import Memory, make_net, make_task, same, snapshot

from advprune.errors import BadData, Refused
from advprune.masking import bake, hold, maskings, plain_state, prunable_weights
from advprune.masks import kept_count
from advprune.method import PruningMethod, get
from advprune.models import prunable
from advprune.stats import realised_sparsity
from advprune.survey import PREFIX
from advprune.train import fit
from advprune.types import Masks

every_method = pytest.mark.parametrize("name", NAMES)


def every(variants: dict[str, PruningMethod]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", variants.values(), ids=variants.keys())


def original_parameters(net: nn.Module) -> dict[str, Tensor]:
    """Weights and biases of prunable layers beneath any parametrisation."""
    found = {}
    for name, layer in prunable(net).items():
        masked = parametrize.is_parametrized(layer, "weight")
        # Typed as a module's attribute, which the parametrisation replaces.
        found[name] = layer.parametrizations.weight.original if masked else layer.weight  # pyright: ignore
        if layer.bias is not None:
            found[name.removesuffix("weight") + "bias"] = layer.bias
    return {name: value.detach().clone() for name, value in found.items()}


# Masks


@every_method
@pytest.mark.parametrize("sparsity", [0.0, 1 / 3, 0.5, 0.9, 0.95])
def test_the_masks_keep_exactly_what_was_asked(name: str, sparsity: float) -> None:
    net = make_net()
    sizes = {key: weight.shape for key, weight in prunable_weights(net).items()}
    method = make(name, sparsity)
    if method.shrinks and sparsity > 0.9:
        with pytest.raises(BadData, match=r"conv\d\.weight would keep .* lower --sparsity"):
            search(method, net)
        return
    masks = search(method, net)
    assert {key: mask.shape for key, mask in masks.items()} == sizes
    assert all(mask.any() for mask in masks.values())
    if method.shrinks:
        # 8, 16 and 20 channels can go.
        assert sum(kept_channels(masks)) == 44 - math.ceil(sparsity * 44)
    elif getattr(method, "granularity", "weight") != "weight":
        method.units(net, make_task()).check(masks, sparsity)
    else:
        total = sum(shape.numel() for shape in sizes.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, sparsity)
    if sparsity == 0.0:
        assert all(mask.all() for mask in masks.values())


def kept_channels(masks: Masks) -> list[int]:
    """How many channels of each convolution of the toy network are read by the next layer."""
    readers = ["network.conv2.weight", "network.conv3.weight", "network.fc.weight"]
    return [int(masks[name].transpose(0, 1).flatten(1).any(dim=1).sum()) for name in readers]


GRANULAR = {k: m for k, m in VARIANTS.items() if getattr(m, "granularity", "weight") != "weight"}


@every(GRANULAR)
def test_what_goes_as_one_goes_whole(method: PruningMethod) -> None:
    masks = search(method, make_net())
    if method.shrinks:
        makers = ["network.conv1.weight", "network.conv2.weight", "network.conv3.weight"]
        kept = kept_channels(masks)
        assert [int(masks[m].flatten(1).any(dim=1).sum()) for m in makers] == kept
        for index, maker in enumerate(makers):
            inputs = 1 if index == 0 else kept[index - 1]
            pixels = masks[maker][0, 0].numel()
            assert int(masks[maker].sum()) == kept[index] * inputs * pixels
        assert bool(masks["network.fc.weight"].any(dim=0).eq(masks["network.fc.weight"]).all())
    for key, mask in masks.items():
        if getattr(method, "granularity", None) == "column":
            assert torch.equal(mask.any(dim=0), mask.all(dim=0))
        if getattr(method, "granularity", None) == "2:4":
            if key == "network.conv1.weight":
                assert mask.all()  # one colour makes no four
            else:
                fours = mask.unflatten(1, (-1, 4)).sum(dim=2)
                assert torch.equal(fours, torch.full_like(fours, 2))


@every(VARIANTS)
def test_a_variant_keeps_exactly_what_was_asked_of_its_units(method: PruningMethod) -> None:
    net = make_net()
    weights = prunable_weights(net)
    masks = search(method, net)
    assert {key: mask.shape for key, mask in masks.items()} == {
        key: weight.shape for key, weight in weights.items()
    }
    assert {mask.dtype for mask in masks.values()} == {torch.bool}
    assert {mask.device.type for mask in masks.values()} == {"cpu"}
    assert all(mask.any() for mask in masks.values())
    if getattr(method, "granularity", "weight") == "weight":
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, method.sparsity)


@every(VARIANTS)
def test_the_prune_stage_accepts_the_masks(method: PruningMethod) -> None:
    net = make_net()
    masks = search(method, net)
    pruned = bake(net, make_net(seed=5))
    units = method.units(pruned, make_task())
    if method.lands:
        units.check(masks, method.sparsity)
        with pytest.raises(BadData, match=r"sparsity 0\.7 asks"):
            units.check(masks, 0.7)
    weights = prunable_weights(pruned)
    hold(pruned, masks)
    plain = bake(pruned, make_net(seed=6))
    for key, weight in prunable_weights(plain).items():
        assert torch.equal(weight, weights[key] * masks[key])
    total = sum(mask.numel() for mask in masks.values())
    # Nothing that stays is zero by itself, so zeros are what was removed.
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert realised_sparsity(plain) == pytest.approx(1 - kept / total)


@every_method
def test_too_few_weights_for_all_layers_are_refused(name: str) -> None:
    with pytest.raises(Refused, match=r"lower (the |--)sparsity"):
        search(make(name, 0.999), make_net())


# What is left of the network


@every({key: m for key, m in SEARCHES.items() if not m.moves_weights})
def test_a_search_over_masks_leaves_weights_and_biases_as_they_were(method: PruningMethod) -> None:
    net = make_net()
    before = original_parameters(net)
    masks = search(method, net)
    assert same(original_parameters(net), before)
    # And what the network computes with is those weights under a mask; masks of channels are off.
    state = plain_state(net)
    for key, mask in masks.items():
        assert torch.equal(state[key], before[key] * (1 if method.shrinks else mask))


@every({key: m for key, m in VARIANTS.items() if m.moves_weights})
def test_a_method_that_says_it_moves_weights_does(method: PruningMethod) -> None:
    net = make_net()
    before, masks = original_parameters(net), search(method, net)
    assert method.searches
    after = original_parameters(net)
    assert not any(torch.equal(before[key], after[key]) for key in masks)


@every({key: m for key, m in VARIANTS.items() if not m.searches})
@pytest.mark.parametrize("training", [True, False])
def test_without_a_search_the_network_ends_as_it_was_to_the_last_bit(
    method: PruningMethod, training: bool
) -> None:
    net = make_net(dropout=0.2).train(training)
    net.get_submodule("network.bn2").train(not training)
    net.get_submodule("network.bn1").requires_grad_(False)
    modes = {key: module.training for key, module in net.named_modules()}
    learning = {key: p.requires_grad for key, p in net.named_parameters()}
    before = snapshot(net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    search(method, net)
    assert same(snapshot(net), before)
    assert all((p.grad == 7.0).all() for p in net.parameters())
    assert {key: module.training for key, module in net.named_modules()} == modes
    assert {key: p.requires_grad for key, p in net.named_parameters()} == learning
    assert not any(m._forward_hooks or "forward" in vars(m) for m in net.modules())


# Randomness


@every(VARIANTS)
def test_the_same_seed_gives_the_same_masks(method: PruningMethod) -> None:
    assert same(search(method, make_net()), search(method, make_net()))


@pytest.mark.parametrize("allocation", ["erk", "global"])
def test_another_seed_draws_another_random_mask(allocation: str) -> None:
    method = get("random")(sparsity=0.8, **{"allocation": allocation})
    first, second = (search(method, make_net(), seed) for seed in (0, 1))
    pruned = [key for key, mask in first.items() if not mask.all()]
    assert len(pruned) >= 2
    assert not any(torch.equal(first[key], second[key]) for key in pruned)


@pytest.mark.parametrize("allocation", ["uniform", "erk", "global"])
def test_random_masks_do_not_look_at_the_weights(allocation: str) -> None:
    method = get("random")(sparsity=0.8, **{"allocation": allocation})
    assert same(search(method, make_net(seed=0)), search(method, make_net(seed=1)))


def test_one_random_draw_for_all_layers_gives_them_about_the_same_density() -> None:
    masks = search(get("random")(sparsity=0.5, **{"allocation": "global"}), make_net())
    conv2 = masks["network.conv2.weight"]
    # 1,152 draws with probability one half: six standard deviations are 102.
    assert abs(int(conv2.sum()) - conv2.numel() / 2) < 102
    # Drawn, not allotted: at the same density everywhere these would be equal.
    assert int(masks["network.conv1.weight"].sum()) != 36


@every(VARIANTS)
def test_no_global_generator_is_drawn_from(method: PruningMethod) -> None:
    net = make_net(dropout=0.2)
    state = torch.get_rng_state()
    search(method, net)
    assert torch.equal(torch.get_rng_state(), state)


# Resuming


def stored(saved: tuple[int, dict[str, Tensor], list[dict]]) -> Memory:
    """An observer that restores what a file made of this would hold."""
    step, tensors, history = saved
    return Memory((step, load_bytes(save_bytes(tensors)), history))


@every(SEARCHES | SURVEYS)
def test_what_is_resumed_after_any_step_ends_in_the_same_bits(method: PruningMethod) -> None:
    whole, memory = make_net(dropout=0.2), Memory(every=1)
    expected = search(method, whole, memory=memory)
    every = range(1, 7) if method.searches else range(1, steps(method))
    assert sorted(memory.saves) == [*every]
    for saved in memory.saves.values():
        resumed = make_net(dropout=0.2)
        assert same(search(method, resumed, memory=stored(saved)), expected)
        assert same(snapshot(resumed), snapshot(whole))


def steps(method: PruningMethod) -> int:
    """One more than the batches that a survey reads."""
    return method.batches_needed(len(IMAGES.train) // SCHEDULE.batch_size) + 1


@every(SEARCHES)
def test_a_search_leaves_checkpoints_that_hold_the_state_of_the_method(
    method: PruningMethod,
) -> None:
    net, memory = make_net(), Memory()
    task = make_task(steps=1)
    trained = fit(net, IMAGES, task, SCHEDULE, memory, method)
    saved = memory.saves[max(memory.saves)][1]
    kept = {k.removeprefix("method/"): v for k, v in saved.items() if k.startswith("method/")}
    assert same(kept, trained.state)
    # A search attaches to every layer, to every one that reads channels, or to none.
    assert len(list(maskings(net))) in (0, len(prunable(net)), len(prunable(net)) - method.shrinks)


@every(SURVEYS)
def test_a_survey_says_something_of_every_weight(method: PruningMethod) -> None:
    net, memory = make_net(), Memory()
    search(method, net, memory=memory)
    _, sums, history = memory.saves[max(memory.saves)]
    shapes = {PREFIX + key: weight.shape for key, weight in prunable_weights(net).items()}
    assert {key: value.shape for key, value in sums.items()} == shapes
    assert all(len(value.unique()) > 1 for value in sums.values())
    assert history == []
