"""Every method registers under its file's name, describes itself, and refuses what it lacks."""

import importlib
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from searching import NAMES

from advprune.card import LEGEND, Card
from advprune.errors import Refused
from advprune.method import PruningMethod, check_sparsity, get, name_of, register
from advprune.objectives import OBJECTIVES

every_method = pytest.mark.parametrize("name", NAMES)


def choices(name: str, option: str) -> tuple[str, ...]:
    """What an option can be, where the method has it."""
    field = get(name).model_fields.get(option)
    return get_args(field.annotation) if field else ()


# The card


@every_method
def test_the_card_says_all(name: str) -> None:
    card = get(name).card
    assert isinstance(card, Card)
    # A tuple of one line that lacks its comma is a text, which would be read letter by letter.
    assert isinstance(card.equations, tuple) and isinstance(card.departures, tuple)
    assert card.equations
    for text in (card.title, card.paper, card.summary, *card.equations, *card.departures):
        assert text.strip() == text != ""
        assert not re.search(r"\n|  |\.$", text), text
    assert card.summary[0].islower()
    assert len(card.summary) < 100
    # The year is the paper's; its rows are sorted and compared by it.
    assert 1980 <= card.year <= 2100
    printed = re.findall(r"\b(?:19|20)\d\d\b", card.paper)
    assert not printed or str(card.year) in printed
    for axis in ("pipeline", "shots", "locality"):
        assert getattr(card, axis) in get_args(inspect.get_annotations(Card)[axis])


@every_method
def test_every_abbreviation_on_a_card_is_in_the_legend(name: str) -> None:
    card = get(name).card
    assert set(re.split(r"[+, ]+", card.structure)) <= {"US", "S"} <= set(LEGEND)
    assert set(card.locality.split(", ")) <= set(LEGEND)
    assert card.shots in LEGEND
    for training in (card.pretraining, card.finetuning):
        assert training in LEGEND or training.lower() in OBJECTIVES or training == "none"
    assert card.criterion in LEGEND or card.criterion.islower()


@every_method
def test_the_card_claims_what_the_options_offer(name: str) -> None:
    card = get(name).card
    offered = set(choices(name, "granularity") or ["weight"])
    forms = (["US"] if "weight" in offered else []) + (["S"] if offered - {"weight"} else [])
    assert card.structure == "+".join(forms)
    if allocations := choices(name, "allocation"):
        assert ("G" in card.locality.split(", ")) == ("global" in allocations)
        assert "L" in card.locality.split(", ")


def test_an_entry_of_the_benchmark_belongs_to_one_method() -> None:
    entries = [card.entry for card in (get(name).card for name in NAMES) if card.entry]
    assert {"HARP", "HYDRA", "MAD", "RADMM", "RST"} <= set(entries)
    assert len(entries) == len(set(entries))


def test_the_methods_of_the_papers_are_there() -> None:
    papers = {"harp", "hydra", "radmm", "mad", "gap", "rst"}
    controls = {"magnitude", "gradient", "random"}
    assert papers | controls <= set(NAMES)


# The registry


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


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"--method 'hrap' is not known; did you mean harp"):
        get("hrap")
    with pytest.raises(Refused, match=f"choose from {', '.join(NAMES)}"):
        get("???")


# Options


@every_method
def test_every_option_has_a_default_and_a_description(name: str) -> None:
    # Options become flags, and their descriptions the help.
    for option, info in get(name).model_fields.items():
        assert not info.is_required(), option
        assert info.description and info.description[-1] != ".", option


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
def test_a_method_trains_or_surveys_or_does_neither(name: str) -> None:
    # The prune stage does one of the two: the other would be left out in silence.
    method = get(name)()
    assert not (method.searches and method.surveys)
    if not method.searches:
        assert not method.moves_weights


@every_method
@pytest.mark.parametrize("sparsity", [1.0, -0.1, 90.0, float("nan"), float("inf")])
def test_a_sparsity_that_is_no_share_is_refused(name: str, sparsity: float) -> None:
    with pytest.raises(ValidationError, match="0 <= sparsity < 1"):
        get(name)(sparsity=sparsity)


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
