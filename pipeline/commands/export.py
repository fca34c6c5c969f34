"""`advprune export`: a finished run as a folder for one kind of device."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from advprune.errors import Refused
from deploy.files import demand_absent, files_below
from deploy.words import size
from export.engine_card import BuildOptions
from pipeline.commands.results import context_of
from pipeline.deliver import GRAPHS, TARGETS, Order
from pipeline.shipping import demand_passed
from pipeline.stages.export import LARGEST_BATCH
from pipeline.stages.gate import GATED

_OF_ENGINES = ("optimal_batch", "version_compatible", "hardware_compatible")


def export(values: Mapping[str, Any]) -> int:
    """Write what was asked for, into a folder that does not exist yet.

    Args:
        values: the options of the command by name, see `pipeline.exporting`.
    """
    target, run = values["target"], values["run"]
    options = _options(values)
    context = context_of(run)
    if values["precision"] == GATED:
        demand_passed(context)
    folder = values["out"] or run / f"export-{target}"
    demand_absent(folder)
    needs_engine = any(values[name] for name in _OF_ENGINES)
    order = Order(context, folder, values["precision"], options, needs_engine)
    delivery = TARGETS[target](order)
    document = {
        "target": target,
        "precision": order.precision,
        "folder": str(folder),
        "files": {name: path.stat().st_size for name, path in files_below(folder).items()},
        "notes": list(delivery.notes),
        "next": delivery.next,
    }
    sys.stdout.write((json.dumps(document) if values["as_json"] else _text(document)) + "\n")
    return 0


def _options(values: Mapping[str, Any]) -> BuildOptions:
    """How an engine is to be built, where everything that was asked for goes together.

    Raises:
        Refused: it does not.
    """
    target, precision = values["target"], values["precision"]
    if target not in TARGETS:
        raise Refused(f"--target {target!r} is not known; use {', '.join(TARGETS)}")
    if precision not in GRAPHS:
        raise Refused(f"--precision {precision!r} is not known; use {', '.join(GRAPHS)}")
    given = [name for name in ("max_batch", *_OF_ENGINES) if values[name]]
    if given and target not in ("tensorrt", "triton"):
        flag = given[0].replace("_", "-")
        raise Refused(f"--{flag} is for --target tensorrt or triton; {target} takes any batch")
    largest, best = values["max_batch"] or LARGEST_BATCH, values["optimal_batch"] or 1
    if best > largest:
        raise Refused(f"--optimal-batch {best} is above --max-batch {largest}; lower it")
    return BuildOptions(largest, best, values["version_compatible"], values["hardware_compatible"])


def _text(document: Mapping[str, Any]) -> str:
    files: Mapping[str, int] = document["files"]
    width = max(len(size(count)) for count in files.values())
    return "\n".join(
        [
            f"{document['folder']}: {document['precision']} for {document['target']}",
            *(f"  {size(count):>{width}}  {name}" for name, count in files.items()),
            *(f"note: {note}" for note in document["notes"]),
            f"next: {document['next']}",
        ]
    )
