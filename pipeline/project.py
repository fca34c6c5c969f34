"""What a user's own project is made of: a recipe, a workflow for CI, a place for baselines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from advprune.errors import Refused
from pipeline.recipe import Recipe

CI = Literal["github", "gitlab", "none"]
RECIPE, BASELINE, IGNORED = "recipe.toml", "baselines/model.json", ".gitignore"
_EXAMPLES = Path(__file__).parent / "ci"
_WORKFLOWS = {"github": ".github/workflows/gate.yml", "gitlab": ".gitlab-ci.yml"}

_HEAD = """\
# What `advprune run --recipe recipe.toml` makes. `advprune plan --recipe recipe.toml` says how long
# it takes. All other settings can stand here as well: `advprune run --help` lists them, and
# runs/latest/recipe.toml has every one of a run, with where its value came from.
"""
# What is said before each setting, in the order of the file.
_COMMENTS = {
    "preset": """\
# How long every stage trains. digits: small images; subset: a few thousand images, minutes on two
# cores, for trying things; cifar10, svhn and imagenet: the papers' schedules, which want a GPU.""",
    "data": """\
# The images: folder:PATH as seen from here, or a set of `advprune data`. After a change ask
# `advprune data check PATH`.""",
    "data_dir": "# Where downloaded data sets are.",
    "image_size": "# Images are resized and cropped to this side.",
    "convert": "# Grey, CMYK, transparent and 16-bit images are turned into RGB.",
    "skip_bad": "# Damaged images are left out, one of a thousand at most.",
    "stream": "# The images to train on stay in their files: they would not fit into memory.",
    "limit_train": "# At most so many images to train, validate and calibrate with.",
    "limit_test": "# At most so many test images.",
    "model": "# What is trained: a name of `advprune models`, or your own package.module:factory.",
    "method": "# What chooses the weights that go: see `advprune methods`.",
    "sparsity": "# The share of weights that goes: 0.9 leaves one of ten.",
    "eps": """\
# What the model must withstand: an attack moves each pixel by so much, of a range from 0 to 1.""",
    "seed": "# Of everything that is random: the same seed gives the same bits.",
}
_SMALLER = """\
# Few images: smaller batches than the preset's, so that an epoch has some steps.
"""
_GATE = """\
# When baselines/model.json is there (baselines/README.md), hold every run against it:
# [gate]
# baseline = "baselines/model.json"
"""
_ABOUT_BASELINES = """\
# Baselines

What was accepted, image by image; the gate holds every later model against it. Make the first one
on your desk, from a run whose report you have read, and commit it:

    advprune gate runs/latest --baseline baselines/model.json --update-baseline --reason "first"
    cp baselines/model.json baselines/release.json

`model.json` is what is accepted now and changes with pull requests. `release.json` is the last
release and stops slow drift; copy `model.json` over it after each release.

The workflow for CI expects advprune itself in tools/advprune, as a submodule:

    git submodule add URL tools/advprune
"""
_BESIDE = {
    "baselines/README.md": _ABOUT_BASELINES.encode(),
    # A file whose line ends git has changed is no baseline any more.
    "baselines/.gitattributes": b"*.json -text\n",
}


def names(ci: CI) -> list[str]:
    """Of all new files, recipe and workflow first."""
    workflow = [] if ci == "none" else [_WORKFLOWS[ci]]
    return [RECIPE, *workflow, *_BESIDE]


def files(recipe: Recipe, settings: Mapping[str, Any], ci: CI) -> dict[str, bytes]:
    """Every new file by its name in the project.

    Args:
        recipe: what `settings` resolve to.
        settings: dotted key -> value, that are written down; the usual others are added.
    """
    workflow = [] if ci == "none" else [(_EXAMPLES / f"gate-{ci}.yml").read_bytes()]
    contents = [recipe_text(recipe, settings).encode(), *workflow, *_BESIDE.values()]
    return dict(zip(names(ci), contents, strict=True))


def ignoring(old: bytes) -> bytes:
    """A .gitignore that leaves out runs, with all that it had before."""
    if b"runs/" in old.split():
        return old
    return old + (b"\n" if old and not old.endswith(b"\n") else b"") + b"runs/\n"


def recipe_text(recipe: Recipe, settings: Mapping[str, Any]) -> str:
    """A recipe with a comment on each setting."""
    usual = ("data", "model", "method", "sparsity", "seed")
    values = {**{key: getattr(recipe, key) for key in usual}, **settings}
    parts = [_HEAD]
    parts += [
        f"{comment}\n{key} = {_toml(values[key])}\n"
        for key, comment in _COMMENTS.items()
        if key in values
    ]
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, dot, leaf = key.rpartition(".")
        if dot:
            tables.setdefault(table, []).append(f"{leaf} = {_toml(value)}")
    if tables:
        about = (
            "# Few images: smaller batches than the preset's, so that an epoch has some steps.\n"
        )
        parts.append(about + "\n".join(f"[{t}]\n" + "\n".join(v) + "\n" for t, v in tables.items()))
    parts.append(_GATE)
    return "\n".join(parts)


def seen_from(folder: Path, path: Path) -> str:
    """A path as a recipe in this folder names it.

    Raises:
        Refused: the path is no text, which TOML could hold.
    """
    path = path.expanduser()
    here, there = folder.resolve(), path.resolve()
    if here != Path.cwd():
        path = there.relative_to(here) if there.is_relative_to(here) else there
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise Refused(f"{path}: is no text, which a recipe could hold; rename it") from None
    return str(path)


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
