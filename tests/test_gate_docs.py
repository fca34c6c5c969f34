"""The page for teams names commands that exist, with numbers that come out."""

import re
import shlex
import tomllib
from inspect import signature
from pathlib import Path

import pytest
from verdict_files import example

from deploy.gate import main
from deploy.policies import POLICIES
from deploy.power import images_to_ship
from deploy.verdicts import write
from pipeline.judging import gate
from pipeline.sections import Gate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ci-gate.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for line in PAGE.splitlines() if line.startswith("    ")]
BARE = [line for line in COMMANDS if line.startswith("python3 -m deploy.gate ")]
OURS = [line for line in COMMANDS if line.startswith("advprune gate ")]


@pytest.mark.parametrize("line", BARE)
def test_the_bare_gate_takes_what_the_page_gives(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "baselines").mkdir()
    for name in ("verdicts.int8.json", "baselines/model.json", "baselines/release.json"):
        write(tmp_path / name, example(380))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert main(shlex.split(line)[3:]) == 0


@pytest.mark.parametrize("line", OURS)
def test_the_command_has_the_options_of_the_page(line: str) -> None:
    options = {"--" + name.replace("_", "-") for name in signature(gate).parameters}
    assert {word for word in shlex.split(line) if word.startswith("--")} <= options


def test_the_recipe_of_the_page_is_one() -> None:
    (table,) = re.findall(r"^    \[gate\]\n(?:    .*\n)+", PAGE, re.MULTILINE)
    terms = Gate.model_validate(
        tomllib.loads(table.replace("\n    ", "\n").strip())["gate"]
    ).terms()
    assert terms.values == {"regress": 0.02, "ship": 0.02, "floor": 0.7}


def test_the_numbers_of_the_page_come_out() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| images to ship"))
    told = [int(cell.replace(",", "")) for cell in re.findall(r"[\d,]+(?= \|)", row)]
    assert told == [images_to_ship(share, 0.02) for share in (0.02, 0.05, 0.15)]
    assert all(f"| `{name}`" in PAGE for name in POLICIES)


def test_the_page_links_to_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file()
    assert len(BARE) >= 3
    assert len(OURS) >= 3
