"""`advprune compare`: two finished runs, in what they were asked and in what came out."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advprune.errors import Incompatible, NotFound, Refused
from advprune.files import write
from deploy.compare import Side, compare_runs, render_compare
from deploy.compare_screen import show
from deploy.files import demand_writable
from deploy.pages import address, printable
from deploy.verdicts import read, verdict_file
from deploy.words import flat
from pipeline.showing import open_page, wide_console
from pipeline.stage import Artifact
from pipeline.store import open_run


def compare(a: Path, b: Path, out: Path | None, opened: bool, as_json: bool) -> int:
    runs = [open_run(path) for path in (a, b)]
    if a.resolve() == b.resolve():
        raise Refused(f"{a} and {b} are the same run; name two")
    page = out or b.resolve().parent / "compare.html"
    demand_writable(page)
    for path, run in zip((a, b), runs, strict=True):
        for stage in ("data", "verify", "report"):
            if stage not in run:
                raise NotFound(f"{path}: not finished: it has no {stage}; run it again")
    classes = [int(run["data"].metrics["classes"]) for run in runs]
    if classes[0] != classes[1]:
        raise Incompatible(
            f"{a} tells {classes[0]} classes apart, {b} {classes[1]}: two tasks, of which neither "
            "number says anything of the other"
        )
    sides = [_side(path, run) for path, run in zip((a, b), runs, strict=True)]
    found = compare_runs(*sides)
    links = [
        address(path / "report.html", page) if (path / "report.html").is_file() else None
        for path in (a, b)
    ]
    write(page, render_compare(found, sides[0], sides[1], links).encode())
    if as_json:
        sys.stdout.write(json.dumps({**found, "page": printable(page)}) + "\n")
    else:
        show(found, wide_console())
        sys.stdout.write(f"{printable(page)}\n")
    if opened:
        open_page(page)
    return 0


def _side(path: Path, run: Mapping[str, Artifact]) -> Side:
    report = json.loads(run["report"].read("report.json"))
    verify = run["verify"]
    verdicts = {
        engine["name"]: read(verify.file(verdict_file(engine["name"])))
        for engine in report.get("engines", ())
    }
    name = printable(Path(path.resolve().name))
    return Side(name, report, verdicts, _sources(path / "recipe.toml", report.get("recipe", {})))


def _sources(file: Path, recipe: Mapping[str, Any]) -> dict[str, str]:
    """Where each setting came from, as the comments of a run's recipe.toml say.

    People may edit that file: a comment counts where the value beside it is still the run's.
    """
    try:
        text = file.read_text()
        values = flat(tomllib.loads(text))
    except (OSError, ValueError, RecursionError):
        return {}
    sources, table = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        key, equals, rest = line.partition(" = ")
        if equals and "  # " in rest:
            sources[table + key] = rest.rpartition("  # ")[2]
    held = flat(dict(recipe))
    return {key: source for key, source in sources.items() if values.get(key) == held.get(key)}
