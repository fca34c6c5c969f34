"""`advprune methods --taxonomy`: the benchmark's table by our cards, and no difference untold."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pages import methods as pages
from tiny_run import advprune, refusal

from advprune.card import LEGEND as OURS
from advprune.card import Card
from advprune.method import get, names
from pipeline import apb
from pipeline.apb.entries import COLUMNS, LEGEND, Entry, entries, key_of, link_of
from pipeline.apb.table import ABSENT, BUILT, DESCRIBED, Row, known, listed, others

CARD = Card("Ghost", "Nobody & Noone, A Ghost, 2031", 2031, "removes nothing", ("nothing",))
KEYS = {
    "after": {"A: Pretraining ", "A: Finetuning", "A: OneShot (1S) vs Iterative (IT)"},
    "before": {"B: Pruning step ", "B: Training step ", "B: OneShot (1S) vs Iterative (IT)"},
    "during": {"D: Training step "},
}
EVERYWHERE = {"link_to_paper", "ap_key", "Type of Pipeline:"} | {
    f"Pruning {what}" for what in ("structure", "locality", "criterion")
}


def rows() -> Iterator[tuple[Entry, Row]]:
    """Every entry of the benchmark with its row."""
    table = listed(known())
    found = {row.entry: row for section in table.values() for row in section}
    for entry in entries():
        yield entry, found[entry.name]


def words(value: str) -> set[str]:
    return set(re.findall(r"[\w.]+", value))


# What the benchmark says


def test_the_benchmark_has_its_26_entries_in_its_sections() -> None:
    sections = [entry.section for entry in entries()]
    assert [sections.count(section) for section in COLUMNS] == [15, 6, 5]
    assert len({entry.name for entry in entries()}) == 26
    assert len({entry.key for entry in entries()}) == 26
    assert all(re.fullmatch(r"\w+_\w+\d{4}\w+", entry.key) for entry in entries())
    assert all(re.match(r"https?://\S+$", entry.link) for entry in entries())


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_what_it_says_is_in_its_abbreviations(entry: Entry) -> None:
    assert entry.json.keys() == entry.readme.keys() == COLUMNS[entry.section].keys()
    more = {"TRADES", "FGSM", "FAST", "none", "SPALWM", "arXiv", "1905.02175"}
    for value in (*entry.json.values(), *entry.readme.values()):
        assert words(value) <= {*LEGEND, *more}, value
    for value in entry.readme.values():
        assert words(value) <= {*LEGEND, "none"}, value
    assert set(entry.why) <= {"entry", "section", *COLUMNS[entry.section]}


# What we say


def test_every_difference_is_marked_and_explained_and_no_explanation_is_left_over() -> None:
    for entry, row in rows():
        told = {difference.axis for difference in row.differences}
        for difference in row.differences:
            assert difference.axis in entry.why, (
                f"{entry.name}: say why {difference} (entries.toml)"
            )
        if row.state != ABSENT:
            assert told == set(entry.why), (
                f"{entry.name}: of {set(entry.why) - told} nothing differs"
            )


def test_a_cell_without_a_mark_is_what_all_three_say() -> None:
    at = {"TRADES", "MART", "FGSM", "FAST"}
    for entry, row in rows():
        for axis in COLUMNS[entry.section].keys() - {d.axis for d in row.differences}:
            shown = words(row.cells[axis])
            assert shown == words(entry.json[axis])
            coarse = {"AT" if word in at else word for word in shown}
            assert coarse == words(entry.readme[axis])


def test_a_row_shows_the_card_where_there_is_one() -> None:
    for entry, row in rows():
        if row.state == ABSENT:
            assert (row.method, row.cells) == ("", entry.json)
        else:
            card, state = known()[row.method]
            assert (card.entry, state) == (entry.name, row.state)
            for axis, value in row.cells.items():
                assert words(value) == words(getattr(card, axis)) or value == getattr(card, axis)


def test_every_method_is_in_the_table_once_and_every_entry_is_one_of_the_benchmarks() -> None:
    cards = known()
    both = [*listed(cards).values(), *others(cards).values()]
    assert sorted(row.method for rows in both for row in rows if row.method) == sorted(cards)
    assert {card.entry for card, _ in cards.values()} <= {"", *(e.name for e in entries())}


def test_it_works_with_any_cards() -> None:
    assert {row.state for rows in listed({}).values() for row in rows} == {ABSENT}
    assert not any(others({}).values())

    moved = replace(CARD, entry="FRE", pipeline="before", criterion="LWM", structure="US+S")
    (row,) = [r for r in listed({"ghost": (moved, BUILT)})["after"] if r.entry == "FRE"]
    assert (row.method, row.state, row.cells["structure"]) == ("ghost", BUILT, "S, US")
    differing = {difference.axis for difference in row.differences}
    assert differing == {"section", "pretraining", "finetuning", "shots", "structure", "criterion"}
    (alone,) = others({"ghost": (CARD, DESCRIBED)})["after"]
    assert (alone.entry, alone.state) == ("Ghost", DESCRIBED)


# As it is shown


def test_the_marks_are_counted_through_and_each_has_its_footnote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    shown = advprune("methods", "--taxonomy")
    assert shown.code == 0
    table, _, below = shown.out.partition("\n[1] ")
    marks = [int(mark) for mark in re.findall(r"\[(\d+)\]", table)]
    notes = [int(mark) for mark in re.findall(r"^\[(\d+)\] ", f"[1] {below}", re.MULTILINE)]
    assert sorted(marks) == notes == [*range(1, len(notes) + 1)]
    assert len(notes) == sum(len(row.differences) for _, row in rows())
    assert "HARP, pretraining: the benchmark says TRADES (JSON), AT (README); " in below
    assert "Not in the benchmark" in table and "Pruning before training" in table
    for short, long in LEGEND.items():
        assert f"{short} {long}" in re.sub(r"\s+", " ", below)


def test_the_table_as_json() -> None:
    document = advprune("methods", "--taxonomy", "--json").json
    assert set(document["sections"]) == set(COLUMNS) == set(document["others"])
    harp = next(row for row in document["sections"]["after"] if row["entry"] == "HARP")
    assert (harp["method"], harp["state"]) == ("harp", "built")
    assert {d["axis"]: d["json"] for d in harp["differences"]} == {
        "pretraining": "TRADES",
        "finetuning": "TRADES",
    }
    assert "gap" in [row["method"] for row in document["others"]["after"]]
    assert set(document["legend"]) >= set(OURS)


def test_one_method_is_no_table() -> None:
    message = refusal(advprune("methods", "harp", "--taxonomy"), 2)
    assert "for the card of one: advprune methods harp" in message


def test_the_page_of_all_methods_has_the_table() -> None:
    page = pages.pages()["README"]
    for entry in entries():
        assert f"[{entry.name}" in page and f"]({entry.link})" in page
    assert page.count("no card yet") == sum(row.state == ABSENT for _, row in rows())
    assert "| [mad](mad.md) | AT | AT |" in page


# A method's own entry, as the benchmark's form gives it


@pytest.mark.parametrize("name", names())
def test_an_entry_has_the_keys_of_the_benchmarks_json(name: str) -> None:
    card = get(name).card
    made = apb.taxonomy(card)
    assert set(made) == KEYS[card.pipeline] | EVERYWHERE
    assert re.fullmatch(r"\w+?_\w+", made["ap_key"])
    json.dumps(made)


def test_a_method_is_named_as_the_benchmark_names_or_would_name_it() -> None:
    for entry in entries():
        card = Card(entry.name, "Nobody et al., Else, 1999", 1999, "", (), entry=entry.name)
        assert (key_of(card), link_of(card)) == (entry.key, entry.link)
    assert key_of(get("gap").card) == "GAP_Weiss2022Hardening"
    assert key_of(get("anp_vs").card) == "ANPVS_Madaan2020Adversarial"
    assert key_of(CARD) == "Ghost_Nobody2031A"
    assert key_of(Card("G-1", "a web page", 2020, "", ())) == "G1_2020"
    assert link_of(CARD) == CARD.paper


def test_the_data_are_packaged() -> None:
    root = Path(apb.__file__).parents[2]
    assert "apb/*.toml" in (root / "pyproject.toml").read_text()
