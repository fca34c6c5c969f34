"""A goal, what was measured of it, and the table of all: Markdown and back, and the screen."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from side_by_side import Spread

HEAD = ("name", "what", "against", "goal", "measured", "spread", "verdict", "where")
# Of a CPU: what makes products of small numbers fast.
FLAGS = ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


class Outcome(NamedTuple):
    """The last cells of a goal's row."""

    measured: str = "not measured"
    spread: str = ""
    verdict: str = ""
    where: str = ""


@dataclass(frozen=True)
class Goal:
    """What is to be reached, and how it is measured.

    Attributes:
        what, against: cells of the table.
        bound: the least that the median must be, or the most if `most`.
        measure: of this machine, or quoted.
        unit: what stands behind the numbers.
        device: cpu or cuda.
        source: the command that wrote a quoted figure; "" if it is measured here.
    """

    what: str
    against: str
    bound: float
    measure: Callable[[], Spread]
    unit: str = "×"
    most: bool = False
    device: str = "cpu"
    source: str = ""

    @property
    def asked(self) -> str:
        return f"{'at most' if self.most else 'at least'} {self.bound:g}{self.unit}"

    @property
    def measurable(self) -> bool:
        """Whether this machine has what it takes."""
        return self.device != "cuda" or torch.cuda.is_available()

    def outcome(self, found: Spread) -> Outcome:
        reached = found.median <= self.bound if self.most else found.median >= self.bound
        return Outcome(
            f"{found.median:.3g}{self.unit}",
            f"{found.low:.3g}-{found.high:.3g}",
            "reached" if reached else "missed",
            f"`{self.source}`" if self.source else machine(self.device),
        )


def machine(device: str) -> str:
    """What a measurement depends on beside the code."""
    library = f"torch {torch.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {library}"
    card = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.*)", card)
    flags = [flag for flag in FLAGS if re.search(rf"\b{flag}\b", card)]
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return ", ".join([model[1].strip() if model else "CPU", threads, *flags, library])


def to_markdown(goals: Mapping[str, Goal], outcomes: Mapping[str, Outcome]) -> str:
    """A row for every goal; what has no outcome was not measured."""
    lines: list[Sequence[str]] = [HEAD, ("---",) * len(HEAD)]
    for name, goal in goals.items():
        lines.append((name, goal.what, goal.against, goal.asked, *outcomes.get(name, Outcome())))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def from_markdown(text: str) -> dict[str, Outcome]:
    """The outcomes in a table of `to_markdown`."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    found = {row[0]: Outcome(*row[-len(Outcome._fields) :]) for row in rows}
    return {name: outcome for name, outcome in found.items() if outcome != Outcome()}


def show(goals: Mapping[str, Goal], outcomes: Mapping[str, Outcome], console: Console) -> None:
    """The columns that fit a screen."""
    table = Table("name", "goal", "measured", "spread", "verdict")
    styles = {"reached": "green", "missed": "red", "": "dim"}
    for name, goal in goals.items():
        found = outcomes.get(name, Outcome())
        table.add_row(name, goal.asked, *found[:3], style=styles[found.verdict])
    console.print(table)
