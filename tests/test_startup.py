"""Words that only read: help and the gate answer without torch, which takes seconds to import."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from verdict_files import example

from deploy.sealed import seal
from deploy.verdicts import verdict_file, write
from pipeline.cli import app
from pipeline.files import sha256

HEAVY = ("torch", "numpy", "pydantic", "onnx", "onnxruntime", "safetensors", "jinja2", "scipy")
SHOW = """
import sys
from pipeline.cli import main
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as end:
        assert end.code == 0, words
print(*sys.modules)
"""


def imported(*commands: str, before: str = "") -> set[str]:
    """The heavy modules that a fresh process has imported after these commands."""
    words = [sys.executable, "-c", before + SHOW, *commands]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    heavy: set[str] = set(HEAVY)
    return heavy & set(done.stdout.splitlines()[-1].split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """As much of a finished run as its gate reads."""
    folder = tmp_path / "run" / "07_verify"
    folder.mkdir(parents=True)
    for engine, digest in (("int8", "a"), ("fp32", "b")):
        write(folder / verdict_file(engine), example(sha=digest, precision=engine))
    files = {path.name: {"sha256": sha256(path)} for path in sorted(folder.iterdir())}
    rest = {"config": {}, "metrics": {}, "seconds": 1.0, "environment": {}}
    (folder / "manifest.json").write_bytes(seal({**rest, "files": files}))
    return tmp_path / "run"


def commands(group: Any, *words: str) -> Iterator[str]:
    """Every command and subcommand, as it is typed."""
    for name, command in group.commands.items():
        yield " ".join([*words, name])
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)


def test_help_imports_nothing_heavy() -> None:
    assert imported("--help") == set()
    words = {"run", "plan", *commands(typer.main.get_command(app))}
    assert {"data check", "bundle verify", "init", "doctor"} <= words
    # Typer itself takes pydantic to parse the words of a command, but nothing of ours does.
    assert imported(*(f"{word} --help" for word in sorted(words))) <= {"pydantic"}


def test_the_gate_reads_a_file_or_a_run_without_torch_and_numpy(run: Path) -> None:
    file = run / "07_verify" / verdict_file("int8")
    update = f"--baseline {run}/new.json --update-baseline --reason first"
    for target in (file, run):
        found = imported(f"gate {target} --baseline {file}", f"gate {target} {update}")
        # The store names the errors of safetensors, which is small.
        assert found <= {"pydantic", "safetensors"}


def test_the_check_for_heavy_imports_would_notice_one() -> None:
    assert imported("--help", before="import numpy") == {"numpy"}
