"""`advprune board`: every finished run of some folders on one page, ranked where that is fair."""

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advprune.errors import NotFound, Refused
from advprune.files import write
from advprune.method import get
from deploy import strict_json
from deploy.board import parts, render_board, show
from deploy.board_rows import add_benchmark, measured, published
from deploy.errors import DeployError
from deploy.files import demand_writable
from deploy.pages import address, printable
from deploy.verdicts import read, verdict_file
from pipeline.showing import open_page, wide_console
from pipeline.stage import MANIFEST
from pipeline.stages.gate import GATED
from pipeline.store import is_run, open_run

BENCHMARK = "apb.json"  # beside a run: what `advprune attack --protocol apb --out` wrote
_NO_RUNS = ("store", "sweeps")  # folders beside the runs
_LARGEST = 8_000_000  # bytes of it; with 10,000 images it has a tenth


def board(folders: Sequence[Path], out: Path | None, opened: bool, as_json: bool) -> int:
    page, rows, skipped = gather(folders, out)
    _tell(page, rows, skipped, as_json)
    if opened:
        open_page(page)
    return 0


def gather(
    folders: Sequence[Path], out: Path | None
) -> tuple[Path, list[dict[str, Any]], list[dict[str, str]]]:
    """Write the page: where it is, the rows on it, and what was left out, and why.

    Raises:
        NotFound: no finished run.
    """
    page = out or (folders[0].parent if is_run(folders[0]) else folders[0]) / "board.html"
    found = [run for folder in folders for run in _runs_below(folder)]
    demand_writable(page)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    links: dict[str, str] = {}
    for run in found:
        # One folder of runs has each name once; several need not.
        name = printable(run) if len(folders) > 1 else printable(Path(run.name))
        try:
            row = _row(run, name)
        except (Refused, DeployError) as error:
            skipped.append({"run": name, "why": str(error)})
            continue
        rows.append(row)
        if (run / "report.html").is_file():
            links[name] = address(run / "report.html", page)
        try:
            _add_benchmark(run, row)
        except (Refused, DeployError) as error:
            skipped.append({"run": f"{name}/{BENCHMARK}", "why": str(error)})
    if not rows:
        where = ", ".join(printable(folder) for folder in folders)
        why = "".join(f"; {one['run']}: {one['why']}" for one in skipped[:1])
        raise NotFound(f"{where}: no finished run{why}; make one with `advprune run`")
    write(page, render_board(rows, skipped, links).encode())
    return page, rows, skipped


def _runs_below(folder: Path) -> Iterator[Path]:
    """A run, or the folders that may be runs in a folder of them, each once.

    Raises:
        NotFound: there is no such folder.
    """
    if is_run(folder):
        yield folder
        return
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder; make a run with `advprune run`")
    seen = set()
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name not in _NO_RUNS]
    # A link such as `latest` after what it stands for.
    for path in sorted(inside, key=lambda path: (path.is_symlink(), path.name)):
        if not path.name.startswith(".") and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path


def _row(run: Path, name: str) -> dict[str, Any]:
    artifacts = open_run(run)
    for stage in ("report", "verify"):
        if stage not in artifacts:
            raise NotFound(f"not finished: it has no {stage}; the same `advprune run` goes on")
    report = json.loads(artifacts["report"].read("report.json"))
    verdicts = read(artifacts["verify"].file(verdict_file(GATED)))
    made = (artifacts["report"].path / MANIFEST).stat().st_mtime
    facts = {"run": name, "date": datetime.fromtimestamp(made, UTC).date().isoformat()}
    return measured(report, verdicts, {**facts, "when": _when(report)})


def _when(report: Any) -> str | None:
    """Whether the method prunes before, after or during training; None where it is not known."""
    try:
        return get(report["recipe"]["method"]).card.pipeline
    except (Refused, LookupError, TypeError):
        return None


def _add_benchmark(run: Path, row: dict[str, Any]) -> None:
    path = run / BENCHMARK
    if not path.is_file():
        return
    with path.open("rb") as file:
        content = file.read(_LARGEST)
    try:
        result = strict_json.loads(content)
    except ValueError as error:
        raise DeployError(f"not a JSON document ({error})", 65) from error
    shipped = read(open_run(run)["verify"].file(verdict_file(GATED)))
    add_benchmark(row, result, shipped.artefact["sha256"])


def _tell(
    page: Path, rows: list[dict[str, Any]], skipped: list[dict[str, str]], as_json: bool
) -> None:
    if as_json:
        ranked = [row for part in parts(rows) for row in part["rows"]]
        document = {"schema": 1, "page": printable(page), "rows": ranked, "skipped": skipped}
        document["published"] = published()[0]
        sys.stdout.write(json.dumps(document) + "\n")
        return
    show(rows, wide_console())
    for one in skipped:
        sys.stdout.write(f"left out {one['run']}: {one['why']}\n")
    sys.stdout.write(f"{printable(page)}\n")
