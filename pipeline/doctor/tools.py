"""Programs and settings around the pipeline, which runs without them, but not as well."""

import shutil
import sys
import webbrowser
from collections.abc import Iterator

from pipeline.doctor.finding import Finding


def bytecode() -> Iterator[Finding]:
    if sys.dont_write_bytecode:
        yield Finding(
            "bytecode",
            "warning",
            "is not kept: what is not compiled yet, every command compiles anew, for seconds",
            "unset PYTHONDONTWRITEBYTECODE",
        )
    else:
        yield Finding("bytecode", "ok", "is kept")


def programs() -> Iterator[Finding]:
    """For the words of the Makefile, and to look at a page."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    yield _found("C compiler", compiler, "`make setup`", "apt-get install gcc")
    yield _found("make", shutil.which("make"), "the short words", "apt-get install make")
    try:
        browser = getattr(webbrowser.get(), "name", "found")
    except webbrowser.Error:
        browser = None
    elsewhere = "copy report.html of a run to a machine with one"
    yield _found("browser", browser, "reports", elsewhere)


def _found(name: str, path: str | None, purpose: str, remedy: str) -> Finding:
    if path:
        return Finding(name, "ok", path)
    return Finding(name, "absent", f"none; it is for {purpose}", remedy)
