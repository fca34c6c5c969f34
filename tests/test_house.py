"""The house rules that a tool can check: size of files, names on disk, what the README promises."""

import re
from pathlib import Path

from advprune.method import names

ROOT = Path(__file__).parent.parent
PACKAGES = ("advprune", "export", "deploy", "pipeline")
SOURCES = sorted(path for folder in (*PACKAGES, ".ci") for path in (ROOT / folder).rglob("*.py"))
BUDGET = 260
# Each travels to devices by itself, with all that it needs.
BUDGETS = {"export/build_engine.py": 490, "deploy/edge_verify.py": 725}


def test_a_source_file_is_about_one_thing() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    too_long = [name for name, count in lines.items() if count > BUDGETS.get(name, BUDGET)]
    assert too_long == [], "split it, one idea per file"
    silent = [name for name, text in texts.items() if text and not text.startswith('"""')]
    assert silent == [], "say in the first line what the file is for"


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
