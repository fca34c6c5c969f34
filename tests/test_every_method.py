"""Every registered method keeps the contract, picked up by its file's name."""

import importlib
import inspect
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from toy import Memory, make_images, make_net, make_task, same, snapshot

from advprune import method as methods
from advprune.errors import Refused
from advprune.masking import bake, hold, maskings, plain_state, prunable_weights
from advprune.masks import kept_count
from advprune.method import Card, PruningMethod, check_sparsity, get, name_of, register
from advprune.models import prunable
from advprune.stats import realised_sparsity
from advprune.train import Schedule, Trained, fit
from advprune.types import Masks

IMAGES = make_images(train=24, val=9)
SCHEDULE = Schedule(epochs=3, batch_size=12, lr=0.1, validate_every=0)
NAMES = methods.names()
every_method = pytest.mark.parametrize("name", NAMES)
# The others read their masks off the network, without training.
every_search = pytest.mark.parametrize("name", [name for name in NAMES if get(name)().learns])


def search(
    method: PruningMethod, net: nn.Module, seed: int = 0, memory: Memory | None = None
) -> Masks:
    """The masks as the pipeline's prune stage comes to them."""
    task = make_task(seed, steps=1)
    trained = Trained({}, [])
    if method.learns:
        trained = fit(net, IMAGES, task, SCHEDULE, memory or Memory(), method)
    return method.finish(net, trained.state, task)


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


@every_method
@pytest.mark.parametrize("sparsity", [0.0, 1 / 3, 0.5, 0.9, 0.95])
def test_the_masks_keep_exactly_what_was_asked_of_every_prunable_weight(
    name: str, sparsity: float
) -> None:
    net = make_net()
    sizes = {key: weight.shape for key, weight in prunable_weights(net).items()}
    masks = search(get(name)(sparsity=sparsity), net)
    assert {key: mask.shape for key, mask in masks.items()} == sizes
    assert {mask.dtype for mask in masks.values()} == {torch.bool}
    assert {mask.device.type for mask in masks.values()} == {"cpu"}
    total = sum(shape.numel() for shape in sizes.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, sparsity)
    assert all(mask.any() for mask in masks.values())
    if sparsity == 0.0:
        assert all(mask.all() for mask in masks.values())


@every_method
def test_the_pruned_network_has_the_sparsity_that_was_asked(name: str) -> None:
    net = make_net()
    masks = search(get(name)(sparsity=0.8), net)
    pruned = bake(net, make_net(seed=5))
    hold(pruned, masks)
    plain = bake(pruned, make_net(seed=6))
    kept = kept_count(sum(mask.numel() for mask in masks.values()), 0.8)
    total = sum(mask.numel() for mask in masks.values())
    assert realised_sparsity(plain) == pytest.approx(1 - kept / total)


@every_method
def test_searching_leaves_weights_and_biases_as_they_were(name: str) -> None:
    net = make_net()
    before = original_parameters(net)
    method = get(name)(sparsity=0.8)
    masks = search(method, net)
    assert same(original_parameters(net), before)
    # And what the network computes with is those weights under a mask.
    state = plain_state(net)
    for key, mask in masks.items():
        allowed = mask if method.learns else torch.ones_like(mask)
        assert torch.equal(state[key], before[key] * allowed)


@every_method
def test_the_same_seed_gives_the_same_masks(name: str) -> None:
    method = get(name)(sparsity=0.8)
    assert same(search(method, make_net()), search(method, make_net()))


def test_another_seed_draws_another_random_mask() -> None:
    method = get("random")(sparsity=0.8)
    first, second = (search(method, make_net(), seed) for seed in (0, 1))
    pruned = [key for key, mask in first.items() if not mask.all()]
    assert len(pruned) >= 2
    assert not any(torch.equal(first[key], second[key]) for key in pruned)


def test_random_masks_do_not_look_at_the_weights() -> None:
    method = get("random")(sparsity=0.8)
    assert same(search(method, make_net(seed=0)), search(method, make_net(seed=1)))


@every_method
def test_no_global_generator_is_drawn_from(name: str) -> None:
    net = make_net()
    state = torch.get_rng_state()
    search(get(name)(sparsity=0.8), net)
    assert torch.equal(torch.get_rng_state(), state)


@every_search
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_search_ends_in_the_same_bits(name: str, epoch: int) -> None:
    method = get(name)(sparsity=0.8)
    whole, resumed, memory = make_net(dropout=0.2), make_net(dropout=0.2), Memory()
    expected = search(method, whole, memory=memory)
    masks = search(method, resumed, memory=Memory(memory.saves[epoch]))
    assert same(masks, expected)
    assert same(snapshot(resumed), snapshot(whole))


@every_search
def test_a_search_leaves_checkpoints_that_hold_the_method_s_state(name: str) -> None:
    method = get(name)(sparsity=0.8)
    net, memory = make_net(), Memory()
    task = make_task(steps=1)
    trained = fit(net, IMAGES, task, SCHEDULE, memory, method)
    saved = memory.saves[SCHEDULE.epochs][1]
    stored = {k.removeprefix("method/"): v for k, v in saved.items() if k.startswith("method/")}
    assert same(stored, trained.state)
    assert all(list(maskings(net)))


@every_method
def test_the_card_says_all(name: str) -> None:
    cls = get(name)
    card = cls.card
    assert isinstance(card, Card)
    for text in (card.title, card.paper, card.criterion, card.summary):
        assert text.strip() == text != ""
        assert "\n" not in text
    assert 1980 <= card.year <= 2100
    assert card.scope in get_args(inspect.get_annotations(Card)["scope"])
    assert card.when in get_args(inspect.get_annotations(Card)["when"])
    # Options become flags, and their descriptions the help.
    for option, info in cls.model_fields.items():
        assert info.description, option
        assert not info.is_required(), option


@every_method
def test_the_file_gives_the_name(name: str) -> None:
    cls = get(name)
    assert name_of(cls) == name
    assert Path(inspect.getfile(cls)).stem == name
    module = importlib.import_module(f"advprune.methods.{name}")
    assert [value for value in vars(module).values() if _is_own_method(value, module)] == [cls]
    with pytest.raises(ValueError, match=f"method '{name}' is registered twice"):
        register(cls)


def _is_own_method(value: object, module: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, PruningMethod)
        and inspect.getmodule(value) is module
    )


@every_method
def test_unknown_options_and_changes_are_refused(name: str) -> None:
    cls = get(name)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cls(**{"sparsty": 0.5})
    method = cls(sparsity=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        method.sparsity = 0.9
    assert cls(**method.model_dump()) == method


@every_method
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 90.0, float("nan"), float("inf")])
def test_a_sparsity_that_is_no_share_is_refused(name: str, sparsity: float) -> None:
    with pytest.raises(ValidationError, match="0 <= sparsity < 1"):
        get(name)(sparsity=sparsity)


@every_method
def test_too_few_weights_for_all_layers_are_refused(name: str) -> None:
    with pytest.raises(Refused, match="lower the sparsity"):
        search(get(name)(sparsity=0.999), make_net())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(90.0, "0.90"), (99.0, "0.99"), (99.9, "0.999"), (99.99, "0.9999"), (5.0, "0.05")],
)
def test_percentages_are_refused_with_the_share_that_was_meant(typed: float, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?$"):
        check_sparsity(typed)
    assert check_sparsity(float(meant)) == pytest.approx(typed / 100)


@pytest.mark.parametrize("value", [1.0, 100.0, 1000.0, -1.0, float("nan")])
def test_other_nonsense_gets_no_guess(value: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= sparsity < 1$"):
        check_sparsity(value)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"--method 'hrap' is not known; did you mean harp"):
        get("hrap")
    with pytest.raises(Refused, match=f"choose from {', '.join(NAMES)}"):
        get("???")


def test_the_methods_of_the_papers_are_there() -> None:
    assert {"harp", "hydra", "magnitude", "random"} <= set(NAMES)
