"""What the Adversarial Pruning Benchmark lists: its entries, as its own tables describe them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from advprune.card import LEGEND as OURS
from advprune.card import Card

# The sections of its table, in its order, and what each shows: attribute of a card, and heading.
_SPECIFICS = {"structure": "S/US", "locality": "L/G", "criterion": "criterion"}
COLUMNS = {
    "after": {"pretraining": "pretraining", "finetuning": "finetuning", "shots": "1S/IT"}
    | _SPECIFICS,
    "before": {"pretraining": "pruning step", "finetuning": "training step", "shots": "1S/IT"}
    | _SPECIFICS,
    "during": {"training": "training step"} | _SPECIFICS,
}
_THEIRS = {
    "KD": "knowledge distillation",
    "CNI": "channel noise injection",
    "BCS": "Bayesian connectivity sampling",
    "n.s.": "not specified",
}
LEGEND = _THEIRS | OURS
_TABLES = ("json", "readme")
_FILE = Path(__file__).with_name("entries.toml")
# First author and first word of the title, as in "Li et al., Learning", "Zhao & Wu, Holistic".
_AUTHOR_AND_WORD = re.compile(r"(\w+)(?:, \w+)*(?: et al\.| & \w+), (\w+)")


@dataclass(frozen=True)
class Entry:
    """One entry of the benchmark.

    Attributes:
        key: how its JSON and its files name it.
        json, readme: what each of its two tables says, by the attribute of a card.
        why: reasons for what differs, by attribute; "entry" is the name.
    """

    name: str
    key: str
    link: str
    section: str
    json: Mapping[str, str]
    readme: Mapping[str, str]
    why: Mapping[str, str] = field(default_factory=dict)


@cache
def entries() -> tuple[Entry, ...]:
    """All entries, in the benchmark's order."""
    content: dict[str, list[dict[str, Any]]] = tomllib.loads(_FILE.read_text())
    return tuple(_entry(section, raw) for section in COLUMNS for raw in content[section])


def key_of(card: Card) -> str:
    """NAME_AuthorYearWord, as the benchmark names a method; its own key where it lists it."""
    for entry in entries():
        if entry.name == card.entry:
            return entry.key
    title, found = re.sub(r"\W", "", card.title), _AUTHOR_AND_WORD.search(card.paper)
    return f"{title}_{found[1]}{card.year}{found[2]}" if found else f"{title}_{card.year}"


def link_of(card: Card) -> str:
    """Where its paper is, as the benchmark gives it; else how it is cited."""
    links = {entry.name: entry.link for entry in entries()}
    return links.get(card.entry, card.paper)


def _entry(section: str, raw: Mapping[str, Any]) -> Entry:
    rows = {table: dict(zip(COLUMNS[section], raw[table], strict=True)) for table in _TABLES}
    return Entry(raw["name"], raw["key"], raw["link"], section, **rows, why=raw.get("why", {}))
