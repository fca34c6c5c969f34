"""The house rules that a tool can check: size of files, names on disk, what the README promises."""

import re
from pathlib import Path

import pytest

from advprune.method import names

ROOT = Path(__file__).parent.parent
PACKAGES = ("advprune", "export", "deploy", "pipeline")
SOURCES = sorted(path for folder in (*PACKAGES, ".ci") for path in (ROOT / folder).rglob("*.py"))
BUDGET = 260
# Each travels to devices by itself, with all that it needs.
BUDGETS = {"export/build_engine.py": 490, "deploy/edge_verify.py": 725}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_is_about_one_thing(path: Path) -> None:
    text = path.read_text()
    budget = BUDGETS.get(path.relative_to(ROOT).as_posix(), BUDGET)
    assert len(text.splitlines()) <= budget, "split it, one idea per file"
    if text:
        assert text.startswith('"""'), "say in the first line what the file is for"


def test_every_make_target_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())  # pyright: ignore
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", makefile, re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    assert targets == phony


def test_the_readme_names_only_targets_and_methods_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([a-z-]+)", readme, re.MULTILINE):
        assert re.search(rf"^[a-z -]*\b{target}\b.*:", makefile, re.MULTILINE), target
    for method in re.findall(r"METHOD=([a-z_]+)", readme):
        assert method in names()
