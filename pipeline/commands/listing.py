"""The lists: `advprune attacks`, `data`, `models`."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from advprune import attacks as attack_registry
from advprune import data as data_registry
from advprune import models as model_registry
from advprune.attacks import zoo
from advprune.attacks.spec import settings


def attacks(as_json: bool) -> int:
    return _show("attacks", attack_rows(), as_json)


def attack_rows() -> list[dict[str, Any]]:
    """Our attacks, the one that tunes itself, and those of torchattacks."""
    rows: list[dict[str, Any]] = [
        row | {"settings": ", ".join(settings(attack_registry.get(row["name"])))}
        for row in attack_registry.describe()
    ]
    tuned = {"name": "ho_fmn", "paper": "Mura et al. 2024", "needs": "gradient"}
    rows.append(tuned | {"settings": "in `advprune attack` alone, with --trials"})
    for name in zoo.names():
        row = {"name": f"torchattacks:{name}", "paper": "in torchattacks", "needs": "a network"}
        rows.append(row | {"settings": ", ".join(zoo.settings(name))})
    return rows


def data(as_json: bool) -> int:
    rows = [{"data": name, "what it is": text} for name, text in data_registry.names()]
    return _show("data", rows, as_json)


def models(as_json: bool) -> int:
    rows = [{"model": name, "what it is": text} for name, text in model_registry.describe().items()]
    others = len(model_registry.torchvision_names())
    rows.append(
        {"model": "torchvision:NAME", "what it is": f"any of torchvision's {others} classifiers"}
    )
    count = model_registry.timm_count()
    theirs = "timm's classifiers; not installed: pip install timm"
    theirs = f"any of timm's {count} classifiers" if count else theirs
    rows.append({"model": "timm:NAME", "what it is": theirs})
    rows.append({"model": "package.module:factory", "what it is": "your own network"})
    return _show("models", rows, as_json)


def _show(title: str, rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(rows[0]):
        # A name must be there to copy, whole.
        table.add_column(column, overflow="fold", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    return 0
