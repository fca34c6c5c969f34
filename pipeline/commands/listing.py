"""The lists: `advprune attacks`, `data`, `models`."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from advprune import attacks as attack_registry
from advprune import data as data_registry
from advprune import models as model_registry


def attacks(as_json: bool) -> int:
    return _show("attacks", attack_registry.describe(), as_json)


def data(as_json: bool) -> int:
    rows = [{"data": name, "what it is": text} for name, text in data_registry.names()]
    return _show("data", rows, as_json)


def models(as_json: bool) -> int:
    rows = [{"model": name, "what it is": text} for name, text in model_registry.describe().items()]
    others = len(model_registry.torchvision_names())
    rows.append(
        {"model": "torchvision:NAME", "what it is": f"any of torchvision's {others} classifiers"}
    )
    rows.append({"model": "package.module:factory", "what it is": "your own network"})
    return _show("models", rows, as_json)


def _show(title: str, rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    return 0
