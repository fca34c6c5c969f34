"""`init` writes a project that is valid as it stands, or nothing; and never over what is there."""

import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from test_data_check import fill
from tiny_run import TINY, advprune, refusal

import pipeline.commands.init
from advprune.data import load
from advprune.errors import StorageFailed
from pipeline.recipe import known_keys
from pipeline.resolve import resolve

pytest_plugins = ["tiny_fixtures"]
ROOT = Path(__file__).parents[1]
BESIDE = {"baselines/README.md", "baselines/.gitattributes", ".gitignore", "recipe.toml"}
WORKFLOWS = {"github": ".github/workflows/gate.yml", "gitlab": ".gitlab-ci.yml"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> Path:
    """Where the user is: an empty folder, on a machine without a GPU."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def made(*words: str | Path) -> dict[str, Any]:
    result = advprune("init", *words, "--json")
    assert result.code == 0, result
    return result.json


def photos(folder: Path, classes: int = 2, side: int = 8) -> Path:
    for seed in range(classes):
        fill(folder / "train" / f"c{seed}", 600, seed, (side, side))
        fill(folder / "test" / f"c{seed}", 60, 10 + seed, (side, side))
    return folder


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_everything_that_is_written_is_valid(ci: str, home: Path) -> None:
    told = made("--ci", ci)
    written = tree(home)
    workflow = {WORKFLOWS[ci]} if ci in WORKFLOWS else set()
    assert set(written) == set(told["files"]) == BESIDE | workflow
    for name in workflow:
        # One source: what is tested as an example is what is written.
        assert written[name] == (ROOT / f"docs/examples/gate-{ci}.yml").read_bytes()
        assert "recipe.toml" in str(yaml.safe_load(written[name]))
        assert "baselines/model.json" in str(yaml.safe_load(written[name]))
    assert b"runs/" in written[".gitignore"].splitlines()
    recipe, sources = resolve({}, file=Path("recipe.toml"), environment={})
    asked = tomllib.loads(written["recipe.toml"].decode())
    assert asked.keys() <= set(known_keys())
    assert all(sources[key] == "file recipe.toml" for key in asked)
    assert (recipe.data, recipe.model, recipe.method) == ("digits", "digits_resnet", "harp")


def test_every_setting_is_explained(home: Path) -> None:
    photos(home / "photos", side=20)
    made("--data", "photos", "--image-size", "16", "--convert", "rgb", "--skip-bad")
    top = (home / "recipe.toml").read_text().split("\n[")[0].splitlines()
    settings = [number for number, line in enumerate(top) if " = " in line and line[0] != "#"]
    keys = {top[number].split(" = ")[0] for number in settings}
    assert keys >= {"preset", "data", "image_size", "convert", "skip_bad", "model", "method", "eps"}
    assert all(top[number - 1].startswith("# ") for number in settings)


def test_the_three_commands_are_real(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = made("project")["next"]
    assert len(told) == 3
    goto, _, plan = told[0].partition(" && ")
    assert shlex.split(goto) == ["cd", "project"]
    monkeypatch.chdir(home / "project")
    planned = advprune(*shlex.split(plan)[1:], "--set", "attack_steps=1", "--json")
    assert planned.code == 0, planned
    for words in map(shlex.split, told[1:]):
        helped = advprune(words[1], "--help").out
        assert all(word in helped for word in words if word.startswith("--"))


def test_choices_are_written_down(home: Path) -> None:
    made("--method", "magnitude", "--sparsity", "0.5", "--model", "resnet20")
    recipe, _ = resolve({}, file=Path("recipe.toml"), environment={})
    assert (recipe.method, recipe.sparsity, recipe.model) == ("magnitude", 0.5, "resnet20")


def test_the_users_variables_are_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVPRUNE_SPARSITY", "0.5")
    made()
    assert tomllib.loads((home / "recipe.toml").read_text())["sparsity"] == 0.9


def test_the_data_is_named_as_the_project_sees_it(home: Path) -> None:
    photos(home / "photos")
    photos(home / "inside" / "photos")
    for folder, data, named in (
        (".", "photos", "folder:photos"),
        ("inside", "inside/photos", "folder:photos"),
        ("outside", "photos", f"folder:{home / 'photos'}"),
    ):
        made(folder, "--data", data, "--ci", "none")
        assert tomllib.loads((home / folder / "recipe.toml").read_text())["data"] == named


def test_warnings_of_the_check_are_told(home: Path) -> None:
    photos(home / "photos")
    first = next((home / "photos/train/c0").iterdir())
    os.link(first, home / "photos/test/c0/leaked.png")
    assert any("leakage: 1 of" in text for text in made("--data", "photos")["warnings"])
    shown = advprune("init", "again", "--data", "photos")
    assert "! leakage: 1 of" in shown.out
    assert shown.out.count("→ ") == 3


# What is there stays ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*BESIDE - {".gitignore"}, WORKFLOWS["github"]}))
def test_a_file_that_is_there_is_named_and_nothing_written(name: str, home: Path) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = tree(home)
    message = refusal(advprune("init"), 73)
    assert message.startswith(f"{name}: is there already")
    assert tree(home) == before


def test_a_link_that_leads_nowhere_is_there_too(home: Path) -> None:
    (home / "recipe.toml").symlink_to("nowhere.toml")
    assert "recipe.toml: is there already" in refusal(advprune("init"), 73)
    assert not (home / "nowhere.toml").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"build/\n", b"build/\nruns/\n"),
        (b"build/", b"build/\nruns/\n"),
        (b"\xff\n", b"\xff\nruns/\n"),
        (b"runs/\n# more", b"runs/\n# more"),
    ],
)
def test_what_is_ignored_stays_ignored(old: bytes, new: bytes, home: Path) -> None:
    (home / ".gitignore").write_bytes(old)
    assert (".gitignore" in made("--ci", "none")["files"]) == (old != new)
    assert (home / ".gitignore").read_bytes() == new


def test_a_write_that_fails_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = pipeline.commands.init.write

    def write(path: Path, content: bytes) -> None:
        if path.name == ".gitattributes":
            raise StorageFailed(f"{path}: write failed")
        really(path, content)

    monkeypatch.setattr(pipeline.commands.init, "write", write)
    assert "write failed" in refusal(advprune("init", "project"), 74)
    assert tree(home) == {}


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("--ci jenkins", 2, "--ci 'jenkins' is not known; choose from github, gitlab, none"),
        ("--method harb", 2, "did you mean harp"),
        ("--sparsity 90", 2, "did you mean 0.90?"),
        ("--model resnet2O", 2, "did you mean"),
        ("--model my.nets:small", 66, "cannot import 'my.nets'"),
        ("--model vgg16_bn", 78, "cannot take images of shape (1, 8, 8)"),
        ("--sparsity 0.99999", 65, "lower the sparsity"),
        ("--data none", 66, "there is no folder"),
        ("--data folder:", 2, "names no folder"),
        ("--data digits --image-size 16", 2, "only for folders"),
        ("a b", 2, "unexpected extra argument"),
    ],
)
def test_a_bad_word_writes_nothing(words: str, code: int, says: str, home: Path) -> None:
    assert says in refusal(advprune("init", *words.split()), code)
    assert tree(home) == {}


def test_data_that_a_run_would_refuse(home: Path) -> None:
    photos(home / "photos")
    (home / "photos/train/c0/bad.png").write_bytes(b"no image")
    assert "bad.png: cannot be decoded" in refusal(advprune("init", "new", "--data", "photos"), 65)
    assert not (home / "new").exists()


def test_a_folder_that_is_a_file(home: Path) -> None:
    (home / "file").write_text("mine")
    for folder in ("file", "file/project"):
        assert "file: is a file" in refusal(advprune("init", folder), 73)


def test_a_path_that_a_recipe_cannot_hold(home: Path) -> None:
    odd = os.fsdecode(b"ph\xff")
    photos(home / odd)
    assert "is no text" in refusal(advprune("init", "--data", odd), 2)
    assert not (home / "recipe.toml").exists()


# As it is used ----------------------------------------------------------------------------------


def test_an_installed_package_brings_the_workflows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    nothing_else = ignore_patterns("__pycache__", "*.egg-info")
    for name in ("advprune", "export", "deploy", "pipeline", "docs"):
        copytree(ROOT / name, source / name, symlinks=True, ignore=nothing_else)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))"
    words = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=True)
    wheel = zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1])
    for ci in WORKFLOWS:
        content = wheel.read(f"pipeline/ci/gate-{ci}.yml")
        assert content == (ROOT / f"docs/examples/gate-{ci}.yml").read_bytes()


@pytest.mark.slow
def test_the_project_runs_and_is_gated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits as a user's folder; each command as `init` printed it, but with few steps."""
    digits = load("digits", data_dir=home)
    for number, (image, label) in enumerate(
        (image, label)
        for part in digits.splits.values()
        for image, label in zip(part.images, part.labels.tolist(), strict=True)
    ):
        folder = home / "photos" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number:04}.png")
    told = made("project", "--data", "photos", "--method", "magnitude", "--sparsity", "0.5")
    monkeypatch.chdir(home / "project")
    _, run, accept = (shlex.split(command)[1:] for command in told["next"])
    assert advprune(*run, *TINY).code == 0
    assert advprune(*accept).code == 0
    recipe = Path("recipe.toml")
    commented = recipe.read_text()
    recipe.write_text(commented.replace("# [gate]", "[gate]").replace("# baseline =", "baseline ="))
    assert recipe.read_text() != commented
    again = advprune(*run, *TINY, "--json")
    assert again.code == 0
    assert "baseline" in str(again.json["gate"])
