"""Entries that no public description determines: a card that says what is missing, no method."""

import importlib
import pkgutil
import re
from typing import get_args, get_type_hints

import pytest

import advprune.undetermined
from advprune.card import LEGEND, Card
from advprune.method import get, names

NAMES = sorted(module.name for module in pkgutil.iter_modules(advprune.undetermined.__path__))
every_card = pytest.mark.parametrize("name", NAMES)


def card_of(name: str) -> Card:
    return importlib.import_module(f"advprune.undetermined.{name}").CARD


def test_there_are_such_cards() -> None:
    assert {"fre", "fsrp", "luo23", "rfp"} <= set(NAMES)


@every_card
def test_it_says_what_is_missing_and_what_is_known(name: str) -> None:
    card = card_of(name)
    assert isinstance(card, Card)
    # A tuple of one line that lacks its comma is a text, which would be read letter by letter.
    assert isinstance(card.missing, tuple) and isinstance(card.equations, tuple)
    assert card.missing and card.equations
    lines = (*card.equations, *card.departures, *card.missing)
    for text in (card.title, card.paper, card.summary, *lines):
        assert text.strip() == text != ""
        assert not re.search(r"\n|  |\.$", text), text
    assert card.summary[0].islower() and len(card.summary) < 100
    printed = re.findall(r"\b(?:19|20)\d\d\b", card.paper)
    assert not printed or str(card.year) in printed


@every_card
def test_its_row_is_one_of_the_taxonomy(name: str) -> None:
    card, fields = card_of(name), get_type_hints(Card)
    for axis in ("pipeline", "shots", "locality"):
        assert getattr(card, axis) in get_args(fields[axis])
    assert set(re.split(r"[+, ]+", card.structure)) <= {"US", "S"}
    assert card.criterion in LEGEND or card.criterion.islower()


@every_card
def test_it_has_no_method(name: str) -> None:
    assert name not in names()
    entry = card_of(name).entry
    assert entry
    assert entry not in {get(method).card.entry for method in names()}


def test_no_entry_has_two_cards() -> None:
    entries = [card_of(name).entry for name in NAMES]
    assert len(entries) == len(set(entries))


@pytest.mark.parametrize("method", names())
def test_a_method_misses_nothing(method: str) -> None:
    assert get(method).card.missing == ()
