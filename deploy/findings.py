"""What an evaluation found, on a terminal: attacks by engine, distances, health."""

import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.health import Check
from deploy.outcome import percent
from deploy.statistics import share
from deploy.words import interval, radius

_STYLES = {"SUSPECT": "yellow", "INVALID": "red"}


def show(
    console: Console,
    verdicts: Mapping[str, Mapping[str, list[bool]]],
    curve: Mapping[str, Any] | None,
    health: list[Check],
    threat: Mapping[str, Any],
) -> None:
    """Print accuracy under every attack with its 95 % interval, and what casts doubt on it."""
    count = len(next(iter(verdicts.values()))["clean"])
    eps = radius(threat["eps"]) if threat["eps"] else "0: clean accuracy"
    title = f"{count} images, {threat['norm']} eps {eps}"
    parts: list[RenderableType] = [Text(title, style="bold"), _attacks(verdicts)]
    if curve is not None:
        parts.append(_medians(curve))
    console.print(Group(*parts, *_health(health)))


def _attacks(verdicts: Mapping[str, Mapping[str, list[bool]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("right under")
    for engine in verdicts:
        table.add_column(Text(engine), justify="right", no_wrap=True)
    for attack in next(iter(verdicts.values())):
        style = "bold" if attack == "worst" else ""
        shares = [share(by_attack[attack]) for by_attack in verdicts.values()]
        cells = [Text(f"{percent(one['value'])} {interval(one)}", style) for one in shares]
        table.add_row(Text(attack, style), *cells)
    return table


def _medians(curve: Mapping[str, Any]) -> Text:
    """The median distance to an adversarial image; an image without one is infinitely far."""
    words = []
    for name, engine in curve["engines"].items():
        far = [float("inf") if d is None else d for d in engine["distances"]]
        words.append(f"{name} {statistics.median(far):.4f}")
    return Text(f"median distance to an adversarial image ({curve['norm']}): {', '.join(words)}")


def _health(health: list[Check]) -> list[Text]:
    doubts = [check for check in health if check.status != "OK"]
    if not health:
        return []
    lines = [Text(f"evaluation health: {len(health)} checks, {len(doubts)} in doubt")]
    for check in doubts:
        line = f"  {check.status} {check.id} {check.what}: {check.value:.3g}"
        lines.append(Text(line, style=_STYLES[check.status]))
    return lines
