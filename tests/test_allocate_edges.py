"""Where a budget is nearly another: ties, full layers, nothing left to share."""

import pytest
import torch

from advprune.allocate import ALLOCATIONS, allocate, distribute
from advprune.errors import BadData


def test_a_remainder_goes_to_whoever_is_furthest_from_its_share() -> None:
    sizes = {"a": 10, "b": 10, "c": 10}
    assert distribute({"a": 1.2, "b": 2.7, "c": 3.1}, sizes, 7) == {"a": 1, "b": 3, "c": 3}
    assert distribute({"a": 4.6, "b": 2.7, "c": 3.7}, sizes, 11) == {"a": 4, "b": 3, "c": 4}


def test_among_equals_the_earlier_layer_gets_what_is_left() -> None:
    sizes = {"b": 10, "a": 10, "c": 10}
    assert distribute(dict.fromkeys(sizes, 1.5), sizes, 4) == {"b": 2, "a": 1, "c": 1}


def test_what_a_full_layer_cannot_take_goes_to_the_others() -> None:
    assert distribute({"full": 3.0, "b": 4.0}, {"full": 2, "b": 9}, 7) == {"full": 2, "b": 5}


def test_more_than_there_is_cannot_be_distributed() -> None:
    assert distribute({"a": 9.0, "b": 9.0}, {"a": 2, "b": 3}, 5) == {"a": 2, "b": 3}
    with pytest.raises(ValueError, match="6 exceeds all 5 weights together"):
        distribute({"a": 3.0, "b": 3.0}, {"a": 2, "b": 3}, 6)


@pytest.mark.parametrize("rule", sorted(ALLOCATIONS))
def test_a_rule_by_itself_refuses_what_cannot_serve_every_layer(rule: str) -> None:
    weights = {name: torch.randn(3, 3) for name in "abc"}
    assert set(ALLOCATIONS[rule](weights, 3).values()) == {1}
    with pytest.raises(BadData, match="2 weights cannot serve 3 layers"):
        ALLOCATIONS[rule](weights, 2)


def test_a_network_of_which_every_layer_is_kept_has_nothing_to_prune() -> None:
    weights = {name: torch.randn(3, 3) for name in "ab"}
    with pytest.raises(BadData, match="keeps every layer of this network; nothing to prune"):
        allocate("erk", weights, 0.0, dense={"a", "b"})
