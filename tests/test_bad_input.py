"""Bad input: the right exit code, one line that names it, no traceback, and nothing created."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import Bad, refused
from tiny_run import TINY, Result, advprune, refusal

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")


SETTINGS = [
    Bad("run --sparsity 1", 2, ("--sparsity 1.0", "0 <= sparsity < 1")),
    Bad("run --sparsity -0.1", 2, ("--sparsity -0.1", "0 <= sparsity < 1")),
    Bad("run --sparsity nan", 2, ("--sparsity nan", "0 <= sparsity < 1")),
    Bad("run --sparsity inf", 2, ("--sparsity inf", "0 <= sparsity < 1")),
    Bad("run --sparsity 90", 2, ("--sparsity 90.0", "did you mean 0.90?")),
    Bad("run --sparsity abc", 2, ("--sparsity", "number")),
    Bad("run --method harb", 2, ("--method 'harb'", "did you mean harp")),
    Bad("run --model digit_resnet", 2, ("'digit_resnet'", "did you mean digits_resnet")),
    Bad("run --model my.nets:small", 66, ("'my.nets:small'", "cannot import 'my.nets'")),
    Bad("run --data digit", 2, ("'digit'", "did you mean digits")),
    Bad("run --preset digit", 2, ("--preset 'digit'", "did you mean digits or imagenet?")),
    Bad("run --objective tradez", 2, ("--objective 'tradez'", "'trades'")),
    Bad("run --eps 8", 2, ("--eps '8'", "did you mean 8/255?")),
    Bad("run --eps nan", 2, ("--eps 'nan'", "0 <= eps <= 1, as 0.15 or 8/255")),
    Bad("run --eps -0.1", 2, ("--eps '-0.1'", "0 <= eps <= 1")),
    Bad("run --seed -1", 2, ("--seed -1", "greater than or equal to 0")),
    Bad("run --limit-train 0", 2, ("--limit-train 0", "greater than or equal to 1")),
    Bad("run --image-size 2", 2, ("--image-size 2", "greater than or equal to 4")),
    Bad("run --set prune.epochs", 2, ("--set 'prune.epochs'", "expected KEY=VALUE")),
    Bad("run --set prune.epoch=3", 2, ("'prune.epoch'", "did you mean prune.epochs")),
    Bad("run --set verify.steps=0", 2, ("verify.steps 0 (from --set)", "or equal to 1")),
    Bad("run --set gate.margin=1", 2, ("gate.margin 1", "less than 1")),
    Bad("run --method harp --set options.x=1", 2, ("option of harp 'x'",)),
    Bad("run --nonsense 3", 2, ("--nonsense",)),
    Bad("run --device cuda", 69, ("--device cuda", "0 CUDA devices", "--device cpu")),
    Bad("run --device quda", 2, ("--device 'quda'", "auto, cpu, cuda or cuda:N")),
    Bad("run --recipe none.toml", 66, ("--recipe none.toml: no such file",)),
    Bad("run --baseline none.json", 12, ("--baseline none.json: no such file", "--update-base")),
    Bad("run --data folder:none", 66, ("folder:none", "check the path")),
    Bad("run --data folder:", 2, ("folder:PATH",)),
    Bad("run --image-size 16", 2, ("--image-size 16 is only for folders", "8x8")),
    Bad("run --limit-train 20", 65, ("--limit-train 20",)),
    Bad("run --limit-train 1000", 65, ("leave 100 to calibrate", "at least 1024")),
    Bad("plan --sparsity 90", 2, ("did you mean 0.90?",)),
    Bad("plan --data folder:none", 66, ("folder:none",)),
    Bad("plan --device cuda", 69, ("--device cuda",)),
    Bad("verify", 66, ("runs/latest: not a finished run", "advprune run")),
    Bad("bench none", 66, ("none: not a finished run",)),
    Bad("report none", 66, ("none: not a finished run",)),
    Bad("gate none", 66, ("none: not a finished run",)),
]


@pytest.mark.parametrize("bad", SETTINGS, ids=str)
def test_a_bad_setting(bad: Bad, empty_folder: Path) -> None:
    refused(*bad.words.split(), code=bad.code, says=bad.says)
    assert list(empty_folder.iterdir()) == []


def test_a_bad_variable(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVPRUNE_SPARSITY", "90")
    message = refusal(advprune("run"), 2)
    assert message.startswith("--sparsity 90 (from environment)")
    monkeypatch.setenv("ADVPRUNE_EPOCHS", "3")
    assert "environment: setting 'epochs'" in refusal(advprune("run"), 2)
    assert list(empty_folder.iterdir()) == []


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (b"seed = ", 2, "not a TOML file"),
        (b"\xff\xfe\x00", 2, "not a TOML file"),
        (b"sparsity = 90", 2, "did you mean 0.90?"),
        (b"[prune]\nepoch = 3", 2, "did you mean prune.epochs"),
        (b"[prune]\nepochs = '3 or so'", 2, "prune.epochs '3 or so'"),
        (b"eps = '8/25S'", 2, "--eps '8/25S'"),
    ],
)
def test_a_bad_recipe_file(
    text: bytes, code: int, says: str, tmp_path: Path, empty_folder: Path
) -> None:
    (tmp_path / "recipe.toml").write_bytes(text)
    message = refusal(advprune("run", "--recipe", tmp_path / "recipe.toml"), code)
    assert says in message
    assert str(tmp_path / "recipe.toml") in message
    assert list(empty_folder.iterdir()) == []


def test_a_bad_baseline(tmp_path: Path, empty_folder: Path) -> None:
    (tmp_path / "baseline.json").write_text('{"schema": 1}')
    message = refusal(advprune("run", "--baseline", tmp_path / "baseline.json"), 65)
    assert "baseline.json" in message
    assert list(empty_folder.iterdir()) == []


def test_a_network_that_does_not_fit_the_images(tmp_path: Path, empty_folder: Path) -> None:
    (empty_folder / "nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def large(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    message = refusal(
        advprune("run", "--model", "nets_of_mine:large", "--runs", tmp_path / "r"), 78
    )
    assert "'nets_of_mine:large' cannot take images of shape (1, 8, 8)" in message
    # The images are good; they stay for the next attempt, and nothing else does.
    left = [path.name for path in (tmp_path / "r" / "store").iterdir()]
    assert [name.split("-")[0] for name in left] == ["data"]


# The target -------------------------------------------------------------------------------------


def test_a_file_in_the_way(empty_folder: Path) -> None:
    (empty_folder / "file").write_text("mine")
    for runs in ("file", "file/runs"):
        assert f"{runs}: cannot be created" in refusal(advprune("run", "--runs", runs), 73)
    assert [path.name for path in empty_folder.iterdir()] == ["file"]
    assert (empty_folder / "file").read_text() == "mine"


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    """Even root cannot write to a file system that is mounted so."""
    (tmp_path / "disk").mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o ro none disk && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount; test_store.py covers the refusal")
    words = [*mount, Path(sys.executable).with_name("advprune"), "run", "--runs", "disk/runs"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    message = refusal(Result(done.returncode, done.stdout, done.stderr), 73)
    assert message.startswith("disk/runs: cannot be created (Read-only file system)")


FULL = """
import resource, sys
from pipeline.cli import main
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for size, *words in ((int(size), *rest) for size, *rest in map(str.split, sys.argv[1:])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        main(["run", *words])
    except SystemExit as end:
        print("code", end.code, flush=True)
"""


@pytest.mark.slow
def test_a_disk_that_is_full(empty_folder: Path) -> None:
    tiny = " ".join(TINY)
    # The largest file that fits, in bytes, and the first one that does not.
    cases = {
        "the lock": f"0 {tiny} --runs a",
        "the images": f"20000 {tiny} --runs b",
        "the checkpoint": f"200000 {tiny} --runs c",
        "the network": f"200000 {tiny} --runs d --set standard.epochs=0",
    }
    words = [sys.executable, "-c", FULL, *cases.values()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.findall(r"^code (\d+)$", done.stdout, re.MULTILINE) == ["74"] * len(cases)
    lines = done.stderr.splitlines()
    assert len(lines) == len(cases), done.stderr
    for line in lines:
        assert line.startswith("advprune: ")
        assert "File too large" in line
    assert all("bytes are free: make room" in line for line in (lines[0], *lines[2:]))
    # What looks finished is: the images, where they did fit.
    names = {runs: [p.name for p in Path(runs).glob("store/[!.]*")] for runs in "bcd"}
    assert [[name.split("-")[0] for name in names[runs]] for runs in "bcd"] == [
        [],
        ["data"],
        ["data"],
    ]
    assert not Path("a").exists()
    assert not Path("b").exists()
