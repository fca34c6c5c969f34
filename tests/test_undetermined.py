"""Methods that are only described: a card that says what is missing, a page, and a refusal."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import methods as pages
from tiny_run import advprune, refusal

from advprune import undetermined
from advprune.card import LEGEND, Card
from advprune.errors import Refused
from advprune.method import get, names

GHOST = """\"\"\"A method of nobody.\"\"\"

from advprune.card import Card

CARD = Card(
    title="Ghost",
    paper="Nobody et al., A Ghost in the Weights, 2031",
    year=2031,
    summary="removes what nobody has defined",
    equations=("something is scored", "the least of it goes"),
    missing=("the score's normalisation; the abstract alone is public", "the schedule"),
    pipeline="during",
)
"""


@pytest.fixture
def ghost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One more described method, in a folder of its own."""
    (tmp_path / "ghost.py").write_text(GHOST)
    monkeypatch.setattr(undetermined, "__path__", [*undetermined.__path__, str(tmp_path)])
    monkeypatch.setenv("COLUMNS", "250")
    yield "ghost"
    sys.modules.pop("advprune.undetermined.ghost", None)


@pytest.mark.parametrize("name", undetermined.names())
def test_a_card_says_what_is_missing_and_all_else(name: str) -> None:
    card = undetermined.card(name)
    assert isinstance(card, Card)
    for lines in (card.equations, card.departures, card.missing):
        assert isinstance(lines, tuple)
    assert card.missing and card.equations
    for text in (card.title, card.paper, card.summary, *card.equations, *card.missing):
        assert text.strip() == text != ""
        assert not re.search(r"\n|  |\.$", text), text
    assert card.summary[0].islower() and len(card.summary) < 100
    assert set(re.split(r"[+, ]+", card.structure)) <= {"US", "S"}
    assert card.criterion in LEGEND or card.criterion.islower()


def test_no_method_is_both_built_and_described() -> None:
    assert not {*names()} & {*undetermined.names()}
    assert not any(get(name).card.missing for name in names())
    cards = [get(name).card for name in names()] + [*map(undetermined.card, undetermined.names())]
    entries = [card.entry for card in cards if card.entry]
    assert len(entries) == len(set(entries))


def test_asking_for_it_is_refused_in_one_line_that_names_the_card(ghost: str) -> None:
    assert "ghost" in undetermined.names() and "ghost" not in names()
    with pytest.raises(Refused, match=r"described, but not built: .*`advprune methods ghost`"):
        get(ghost)
    for command in ("run", "plan"):
        assert "described, but not built" in refusal(advprune(command, "--method", ghost), 2)
    with pytest.raises(Refused, match="did you mean ghost"):
        get("gost")


def test_its_card_is_printed_with_what_is_missing(ghost: str) -> None:
    shown = advprune("methods", ghost)
    assert shown.code == 0
    text = re.sub(r"\s+", " ", shown.out)
    card = undetermined.card(ghost)
    assert "Not built, because its public description leaves open" in text
    for line in (card.title, card.paper, card.summary, *card.equations, *card.missing):
        assert line in text
    assert "Options" not in text and "Settings by preset" not in text
    about = advprune("methods", ghost, "--json").json
    assert tuple(about["missing"]) == card.missing
    assert (about["options"], about["presets"]) == ([], {})
    assert advprune("methods", "harp", "--json").json["missing"] == []


def test_it_is_listed_apart_and_is_no_row_of_the_methods(ghost: str) -> None:
    assert "ghost" not in [row["method"] for row in advprune("methods", "--json").json]
    assert re.search(r"Described, but not built, .*: .*\bghost\b", advprune("methods").out)


def test_its_page_is_made_and_listed_apart(ghost: str) -> None:
    made = pages.pages()
    page = made[ghost]
    assert page.startswith("<!-- Made by `make docs`")
    assert "advprune run" not in page and "## Options" not in page
    card = undetermined.card(ghost)
    for line in (*card.equations, *card.missing):
        assert line in page
    overview = made["README"]
    assert overview.index("## Described, but not built") < overview.index("(ghost.md)")
