"""The benchmark's taxonomy from our cards, marked wherever its own tables say otherwise."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from advprune import undetermined
from advprune.card import Card
from advprune.method import get, names
from pipeline.apb.entries import COLUMNS, Entry, entries

BUILT, DESCRIBED, ABSENT = "built", "described", "no card yet"
_CHANGED = "differs; nobody has said why"
# In the README all of these are AT.
_KINDS_OF_AT = re.compile(r"\b(TRADES|MART|FAST AT|FGSM(-RS)?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Difference:
    """Where our card, the benchmark's JSON and its README are not all three the same."""

    axis: str
    ours: str
    json: str
    readme: str
    why: str

    def told(self) -> str:
        """The text of a footnote."""
        said = f"{self.json} (JSON), {self.readme} (README)"
        return f"the benchmark says {said if self.json != self.readme else self.json}; {self.why}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        entry: its name in the benchmark; of a method that is not there, its title.
        method: the name of ours, "" where there is none.
        state: whether that is built, described, or there is no card yet.
        cells: what is shown, by the attribute of a card.
    """

    entry: str
    link: str
    method: str
    state: str
    cells: Mapping[str, str]
    differences: tuple[Difference, ...] = ()


def known() -> dict[str, tuple[Card, str]]:
    """Every card there is, and whether its method is built or only described, by our name."""
    built = {name: (get(name).card, BUILT) for name in names()}
    return built | {name: (undetermined.card(name), DESCRIBED) for name in undetermined.names()}


def listed(cards: Mapping[str, tuple[Card, str]]) -> dict[str, list[Row]]:
    """The rows of all entries of the benchmark, by its section; without a card in its words."""
    by_entry = {card.entry: (name, card, state) for name, (card, state) in cards.items()}
    found: dict[str, list[Row]] = {section: [] for section in COLUMNS}
    for entry in entries():
        name, card, state = by_entry.get(entry.name, ("", None, ABSENT))
        cells = _cells(card, entry.section) if card else dict(entry.json)
        found[entry.section].append(
            Row(entry.name, entry.link, name, state, cells, tuple(_differences(entry, card)))
        )
    return found


def others(cards: Mapping[str, tuple[Card, str]]) -> dict[str, list[Row]]:
    """Our methods that the benchmark does not list, by the section in which it would."""
    entered = {entry.name for entry in entries()}
    found: dict[str, list[Row]] = {section: [] for section in COLUMNS}
    for name, (card, state) in cards.items():
        if card.entry not in entered:
            cells = _cells(card, card.pipeline)
            found[card.pipeline].append(Row(card.title, card.paper, name, state, cells))
    return found


def _cells(card: Card, section: str) -> dict[str, str]:
    return {axis: _in_its_words(getattr(card, axis)) for axis in COLUMNS[section]}


def _in_its_words(value: str) -> str:
    """Several abbreviations as the benchmark writes them: `S, US` for our `US+S`."""
    words = re.split(r"[+,] ?", value)
    return ", ".join(sorted(words, key="S US L G".find)) if _are_short(words) else value


def _are_short(words: list[str]) -> bool:
    return len(words) > 1 and set(words) <= {"S", "US", "L", "G"}


def _differences(entry: Entry, card: Card | None) -> Iterator[Difference]:
    json = {"entry": entry.key.partition("_")[0], "section": entry.section, **entry.json}
    readme = {"entry": entry.name, "section": entry.section, **entry.readme}
    ours = dict(json)
    if card is not None:
        ours = {"entry": card.entry, "section": card.pipeline, **_cells(card, entry.section)}
    for axis, value in ours.items():
        if not (_same(value, json[axis]) and _same(_coarse(value), _coarse(readme[axis]))):
            reason = entry.why.get(axis, _CHANGED)
            yield Difference(axis, value, json[axis], readme[axis], reason)


def _coarse(value: str) -> str:
    return _KINDS_OF_AT.sub("AT", value)


def _same(one: str, other: str) -> bool:
    """Whether two names or values are, but for hyphens and how they are written."""
    return re.sub(r"\W", "", one).casefold() == re.sub(r"\W", "", other).casefold()
