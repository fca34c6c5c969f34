"""The method and the attack that the documentation shows are whole, and keep the contracts."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import test_attacks_contract as of_attacks
import test_every_card as of_cards
import test_every_method as of_methods
import torch
from attack_nets import images, labels, random_for
from linear_nets import at_distance, linear
from searching import make, search
from test_methods_on_models import check
from tiny_run import advprune as command
from toy import make_net, same

import advprune.attacks
import advprune.methods
from advprune import attacks, method
from advprune.types import Norm, Threat

PAGE = (Path(__file__).parents[1] / "docs/add-a-method.md").read_text()
SOURCES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def put(kind: str, name: str, source: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """As if the file lay in the package, which is left as it is."""
    package = {"methods": advprune.methods, "attacks": advprune.attacks}[kind]
    (folder / f"{name}.py").write_text(source)
    patch.setattr(package, "__path__", [*package.__path__, str(folder)])


def forget(package: ModuleType, name: str) -> None:
    sys.modules.pop(f"{package.__name__}.{name}", None)
    if hasattr(package, name):
        delattr(package, name)


@pytest.fixture
def taylor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    put("methods", "taylor", SOURCES[0], tmp_path, monkeypatch)
    yield "taylor"
    method._REGISTRY.pop("taylor", None)
    forget(advprune.methods, "taylor")


@pytest.fixture
def mifgsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    put("attacks", "mifgsm", SOURCES[1], tmp_path, monkeypatch)
    yield "mifgsm"
    forget(advprune.attacks, "mifgsm")


def test_the_page_holds_the_two_and_the_method_is_short() -> None:
    assert len(SOURCES) == 2
    assert len(SOURCES[0].splitlines()) <= 60
    assert max(len(line) for source in SOURCES for line in source.splitlines()) <= 100


def test_the_card_of_the_method_keeps_the_contract(taylor: str) -> None:
    assert taylor in method.names()
    of_cards.test_the_card_says_all(taylor)
    of_cards.test_every_abbreviation_on_a_card_is_in_the_legend(taylor)
    of_cards.test_the_card_claims_what_the_options_offer(taylor)
    of_cards.test_the_file_gives_the_name(taylor)
    of_cards.test_every_option_has_a_default_and_a_description(taylor)
    of_cards.test_unknown_options_and_changes_are_refused(taylor)
    of_cards.test_a_method_trains_or_surveys_or_does_neither(taylor)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_its_masks_are_exact(taylor: str, sparsity: float) -> None:
    of_methods.test_the_masks_keep_exactly_what_was_asked(taylor, sparsity)
    check(taylor, "lenet5_caffe")


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_it_surveys_as_the_contract_says(taylor: str, allocation: str) -> None:
    variant = make(taylor, 0.8, allocation=allocation)
    of_methods.test_the_prune_stage_accepts_the_masks(variant)
    of_methods.test_without_a_search_the_network_ends_as_it_was_to_the_last_bit(variant, True)
    of_methods.test_no_global_generator_is_drawn_from(variant)
    of_methods.test_what_is_resumed_after_any_step_ends_in_the_same_bits(variant)
    of_methods.test_a_survey_says_something_of_every_weight(variant)
    assert same(search(variant, make_net()), search(variant, make_net()))


def test_the_command_line_knows_the_method_and_its_options(taylor: str) -> None:
    shown = command("methods", taylor, "--json").json
    assert shown["title"] == "Taylor"
    assert {option["name"] for option in shown["options"]} == {"sparsity", "allocation"}
    refused = command("plan", "--method", taylor, "--allocation", "erk")
    assert refused.code == 2
    assert "'global' or 'uniform'" in refused.err


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_keeps_the_contract(mifgsm: str, norm: Norm) -> None:
    assert mifgsm in attacks.names()
    of_attacks.test_the_ball_and_the_box_hold(mifgsm, norm)
    of_attacks.test_without_a_budget_nothing_moves(mifgsm, norm)
    of_attacks.test_the_batch_size_changes_nothing(mifgsm, norm, 7)
    of_attacks.test_an_attack_leaves_no_trace(mifgsm, norm)
    of_attacks.test_the_network_is_attacked_in_eval_mode(mifgsm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_comes_near_the_optimum_on_a_linear_network(mifgsm: str, norm: Norm) -> None:
    net, needed = linear((1, 4, 4), 5), {"linf": 0.06, "l2": 0.3}[norm]
    y = labels(4, 5)
    x = at_distance(net, images(4, (1, 4, 4)), y, needed, norm)
    threat = Threat(1.25 * needed, -9.0, 9.0, norm)
    found = attacks.get(mifgsm)(net, x, y, threat, random_for(x))
    assert bool((net(found).argmax(dim=1) != y).all())
    assert torch.isfinite(found).all()
