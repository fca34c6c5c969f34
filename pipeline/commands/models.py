"""`advprune models NAME`: which layers of a network can be pruned, and why others are kept."""

import json
import sys
from dataclasses import asdict
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from advprune.errors import BadData, Refused
from advprune.models import Architecture, build
from advprune.prunability import Granularity, Prunability, inspect
from advprune.stats import parameter_count
from pipeline.wording import unknown


def model(
    name: str, side: int, channels: int, classes: int, granularity: str, as_json: bool
) -> int:
    """Print the report.

    Raises:
        Refused, NotFound, Unavailable, Incompatible: as `build`; or the sizes are out of range.
    """
    if granularity not in get_args(Granularity):
        raise Refused(unknown("--granularity", granularity, list(get_args(Granularity))))
    shape = (channels, side, side)
    try:
        arch = Architecture(name, classes, shape, (0.0,) * channels, (1.0,) * channels)
    except BadData as error:
        raise Refused(f"{error}; see --image-size, --channels and --classes") from None
    net = build(arch)
    found = inspect(net, shape, granularity)  # pyright: ignore[reportArgumentType]
    totals = _totals(found, parameter_count(net))
    if as_json:
        layers = [asdict(row) for row in found.rows]
        document = {
            "model": name, "shape": shape, "classes": classes, "granularity": granularity,
            "layers": layers, "totals": totals,
        }  # fmt: skip
        sys.stdout.write(json.dumps(document) + "\n")
        return 0
    console = Console()
    reasons = _reasons(found)
    title = f"{name} · {channels}x{side}x{side} · {classes} classes"
    console.print(_table(title, found, reasons))
    for why, sign in reasons.items():
        line = f"{sign.removeprefix('no ')} {why}"
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    for line in _lines(found, totals, granularity):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _totals(found: Prunability, parameters: int) -> dict[str, int]:
    return {
        "parameters": parameters,
        "prunable": sum(row.weights for row in found.rows if row.prunable),
        "macs": sum(row.macs for row in found.rows),
        "channels": found.channels,
        "channel_groups": found.groups,
    }


def _table(title: str, found: Prunability, reasons: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", overflow="fold", no_wrap=True)
    table.add_column("kind", overflow="fold")
    # A number that is cut is another number.
    table.add_column("shape", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("pruned", no_wrap=True)
    table.add_column("channels go", overflow="fold")
    for row in found.rows:
        if row.norm:
            continue
        name, shape = _short(row.name), "x".join(map(str, row.shape))
        pruned = "yes" if row.prunable else "kept"
        goes = reasons.get(row.why, "")
        if row.channels:
            goes = "yes" if row.channels == row.name else f"with {_short(row.channels)}"
        table.add_row(name, row.kind, shape, f"{row.weights:,}", f"{row.macs:,}", pruned, goes)
    return table


def _reasons(found: Prunability) -> dict[str, str]:
    """Each reason once, with the sign that stands for it in the table."""
    whys = dict.fromkeys(row.why for row in found.rows if row.why)
    return {why: f"no [{number}]" for number, why in enumerate(whys, start=1)}


def _short(name: str) -> str:
    return name.removeprefix("network.")


def _lines(found: Prunability, totals: dict[str, Any], granularity: str) -> list[str]:
    norms = [row for row in found.rows if row.norm]
    share = totals["prunable"] / totals["parameters"]
    lines = [
        f"{totals['prunable']:,} of {totals['parameters']:,} parameters ({100 * share:.1f} %) can "
        f"be pruned by --granularity {granularity}; {totals['macs']:,} MACs for one image"
    ]
    if found.groups:
        lines.append(f"{found.channels:,} channels can be removed, in {found.groups} groups")
    else:
        lines.append("no channels can be removed; --granularity weight still can")
    if norms:
        lines.append(
            f"{len(norms)} norms with {sum(row.weights for row in norms):,} parameters are kept, "
            "and lose what their channels lose"
        )
    return lines
