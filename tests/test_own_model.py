"""The worked example of docs/own-model.md works as the page says, on images that are made here."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import TINY, advprune

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs/examples"
PAGE = (ROOT / "docs/own-model.md").read_text()
SIDE, CLASSES = 16, ("cross", "disc", "stripes")
SPEC = "own_network:plates"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user: the example, and 400 + 60 images of each class."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("own_network.py", "own_model.sh"):
        shutil.copy(EXAMPLES / name, folder)
    random = np.random.default_rng(0)
    for part, count in (("train", 400), ("test", 60)):
        for name in CLASSES:
            (folder / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                path = folder / "images" / part / name / f"{i}.png"
                Image.fromarray(_drawn(name, random)).save(path)
    return folder


def _drawn(name: str, random: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    row, column = random.uniform(6, 10, 2)
    ink = {
        "disc": (y - row) ** 2 + (x - column) ** 2 < 20,
        "cross": (abs(y - row) < 1.5) | (abs(x - column) < 1.5),
        "stripes": (x + int(column)) // 3 % 2 == 0,
    }[name]
    colour, ground = random.integers(60, 120, 3), random.integers(60, 130, 3)
    noise = random.normal(0, 8, (SIDE, SIDE, 3))
    return (ground + ink[..., None] * colour + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(workplace)
    for name in [name for name in os.environ if name.startswith("ADVPRUNE_")]:
        monkeypatch.delenv(name)
    yield workplace
    sys.modules.pop("own_network", None)  # another test may have one of its own


def test_the_page_shows_what_the_command_prints(here: Path) -> None:
    words = ("--image-size", SIDE, "--classes", len(CLASSES))
    printed = advprune("models", SPEC, *map(str, words)).out
    shown = [line.split() for line in PAGE.splitlines() if re.match(r"    (stem|block)", line)]
    assert len(shown) == 4
    for row in shown:
        assert all(word in printed for word in row if not word.isalpha()), row
    reason = re.search(r"^    \[1\] (.*)$", PAGE, re.MULTILINE)
    assert reason and reason[1] in printed


def test_the_plan_takes_the_images_and_the_network(here: Path) -> None:
    words = ("--model", SPEC, "--data", "folder:images", "--image-size", SIDE, "--runs", "plans")
    result = advprune(
        "plan",
        *map(str, words),
        *TINY,
        "--sparsity",
        "0.4",
        "-m",
        "harp",
        "--granularity",
        "channel",
    )
    assert result.code == 0, result.err
    assert "adversarial" in result.out
    short = advprune("plan", *map(str, words), *TINY, "--limit-train", "900")
    assert "images to train on leave" in short.err
    assert "images to train on leave" in PAGE


@pytest.mark.slow
def test_the_example_comes_to_a_verdict_and_a_bundle(here: Path) -> None:
    environment = {
        **os.environ,
        "ADVPRUNE": f"{sys.executable} -m pipeline",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    words = ["sh", "own_model.sh", "images", str(SIDE), str(len(CLASSES)), "--sparsity", "0.5"]
    done = subprocess.run([*words, *TINY], env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 10, 11), done.stdout + done.stderr
    report = (here / "runs/latest/report.html").read_text()
    assert SPEC in report
    assert (here / "plates/edge_verify.py").is_file()
    assert (here / "plates/manifest.json").is_file()
