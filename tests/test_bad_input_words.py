"""Hostile words, typed or in a file or a variable: each ends in one line, or is meant.

NUL, newlines and very long values, digits of other scripts, brackets without end, and files that
are no files.
"""

from pathlib import Path

import pytest
from bad_input import Bad, refused

from pipeline.resolve import resolve

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")

LONG = "x" * 5000
EMPTY = [
    ("--sparsity", "valid number"),
    ("--method", "--method '' is not known"),
    ("--model", "model '' is not known"),
    ("--data", "data set '' is not known"),
    ("--preset", "--preset '' is not known"),
    ("--objective", "--objective ''"),
    ("--eps", "--eps ''"),
    ("--norm", "--norm ''"),
    ("--seed", "valid integer"),
    ("--device", "--device ''"),
    ("--precision", "--precision ''"),
    ("--limit-train", "valid integer"),
    ("--convert", "--convert ''"),
    ("--quantize", "quantize.how ''"),
    ("--set", "--set '': expected KEY=VALUE"),
    ("--recipe", "not a TOML file"),
]


@pytest.mark.parametrize(("option", "says"), EMPTY)
def test_an_empty_value(option: str, says: str) -> None:
    refused("run", option, "", code=2, says=(says,))


NUMBERS = [
    Bad("run --sparsity 1e999", 2, ("--sparsity inf",)),
    Bad("run --sparsity 0x1", 2, ("valid number",)),
    Bad("run --sparsity ٠.٥", 2, ("valid number",)),
    Bad("run --eps 1e999", 2, ("--eps '1e999'",)),
    Bad("run --eps 1/0", 2, ("--eps '1/0'",)),
    Bad("run --eps 0/0", 2, ("--eps '0/0'",)),
    Bad("run --eps 8/255/3", 2, ("--eps '8/255/3'",)),
    Bad("run --norm l2 --eps inf", 2, ("--eps 'inf'",)),
    Bad("run --seed 1e3", 2, ("valid integer",)),
    Bad(f"run --seed {'9' * 400}", 2, ("less than",)),
    Bad(f"run --seed {'9' * 5000}", 2, ("exceeded maximum size",)),
    Bad(f"run --seed {2**64}", 2, ("less than",)),
    Bad("run --compression 0.5", 2, ("greater than or equal to 1",)),
    Bad("run --compression nan", 2, ("finite",)),
    Bad("run --compression 1e999", 2, ("finite",)),
    Bad("run --set threads=99999999", 2, ("--threads 99999999", "equal to 1024")),
    Bad("run --set attack_steps=0", 2, ("--attack-steps 0",)),
    Bad("run --set prune.lr=inf", 2, ("prune.lr inf", "finite")),
    Bad("run --set prune.epochs=1e999", 2, ("prune.epochs inf", "finite")),
    Bad("run --set prune.epochs=true", 2, ("prune.epochs True", "are for switches")),
    Bad("run --set seed=true", 2, ("--seed True", "are for switches")),
    Bad("run --set prune.batch_size=0", 2, ("prune.batch_size 0",)),
    Bad("run --set verify.queries=-1", 2, ("verify.queries -1",)),
]


@pytest.mark.parametrize("bad", NUMBERS, ids=str)
def test_a_number_that_is_none_or_has_no_bound(bad: Bad) -> None:
    refused(*bad.words.split(), code=bad.code, says=bad.says)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("=3", "expected KEY=VALUE"),
        (".=3", "setting '.'"),
        ("prune.=3", "setting 'prune.'"),
        ("prune..epochs=3", "did you mean prune.epochs"),
        ("prune=3", "setting 'prune'"),
        ("prune={epochs=3}", "setting 'prune'"),
        ("prune.epochs={a=1}", "prune.epochs {'a': 1}"),
        ("prune.epochs=[1]", "prune.epochs [1]"),
        ("options=3", "setting 'options'"),
        ("options.={}", "setting 'options.'"),
        ("options.x.y=3", "setting 'options.x.y'"),
        ("method=3", "--method 3"),
        ("method=['harp']", "--method ['harp']"),
        ("preset=[]", "--preset '[]'"),
        ("data=3", "--data 3"),
        ("model=3", "--model 3"),
        ("seed=1\nsparsity=3", r"--seed '1\nsparsity=3'"),
        (f"seed={'[' * 100_000}", "--seed '[[["),
        (f"seed={LONG}", "--seed 'xxx"),
        (f"{LONG}=3", "setting 'xxx"),
        ("se\x00ed=3", r"setting 'se\x00ed'"),
        ("gate.policy=3", "gate.policy 3"),
        ("gate.policy=nope", "policy 'nope'"),
        ("verify.suite=none", "verify.suite 'none'"),
        ("verify.attacks=['sqare']", "'sqare'"),
        ("convert=grey", "--convert 'grey'"),
    ],
    ids=lambda value: ascii(value)[1:30],
)
def test_a_setting_that_is_none(setting: str, says: str) -> None:
    refused("run", "--set", setting, code=2, says=(says,))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--method", "a\nb"), 2, r"--method 'a\nb'"),
        (("--method", "a\x00b"), 2, r"--method 'a\x00b'"),
        (("--method", LONG), 2, "xxx...xxx"),
        (("--data", LONG), 2, "xxx...xxx"),
        (("--data", "folder:a\nb"), 66, "there is no folder"),
        (("--data", f"folder:{LONG}"), 2, "File name too long"),
        (("--data", "folder:~nobody-of-that-name/x"), 66, "has no home folder"),
        (("--data-dir", "a\x00b"), 2, "null byte"),
        (("--data", "imagenet", "--data-dir", LONG), 2, "File name too long"),
        (("--recipe", LONG), 2, "File name too long"),
        (("--runs", LONG), 2, "File name too long"),
        (("--runs", "a\x00b"), 2, "null byte"),
        (("--baseline", LONG), 2, "File name too long"),
        (("--extra-data", LONG), 2, "File name too long"),
        (("--model", "a\x00b:c"), 66, "cannot import"),
        (("--model", f"{LONG}:c"), 66, "cannot import"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_value_that_is_no_name(words: tuple[str, ...], code: int, says: str) -> None:
    assert len(refused("run", *words, code=code, says=(says,))) < 700


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ADVPRUNE_", "3", "environment: setting ''"),
        ("ADVPRUNE_SEED", "", "--seed '' (from environment)"),
        ("ADVPRUNE_SEED", "\udcff", "--seed"),
        ("ADVPRUNE_SEED", "1\nsparsity=3", "--seed"),
        ("ADVPRUNE_PRUNE", "3", "environment: setting 'prune'"),
        ("ADVPRUNE_PRUNE__EPOCHS", "[[[", "prune.epochs '[[['"),
        ("ADVPRUNE_PRUNE__EPOCHS", "[" * 100_000, "prune.epochs '[[["),
        ("ADVPRUNE___", "3", "environment: setting '.'"),
        ("ADVPRUNE_ÉPS", "3", "environment: setting 'éps'"),
        ("ADVPRUNE_DATA", "\udcff", "data set"),
        ("ADVPRUNE_OPTIONS__X", "3", "option of harp 'x'"),
    ],
)
def test_a_variable_with_an_odd_name_or_value(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    refused("run", code=2, says=(says,))


RECIPES = {
    "binary": (bytes(range(256)), "not a TOML file"),
    "brackets": (b"x = " + b"[" * 100_000, "not a TOML file"),
    "digits": (b"seed = " + b"9" * 10_000, "not a TOML file"),
    "twice": (b"seed = 1\nseed = 2", "not a TOML file"),
    "huge": (b"# " + b"x" * 2_000_000, "larger than 1,000,000 bytes"),
    "a number for a table": (b"prune = 3", "setting 'prune'"),
    "a table for a number": (b"[prune.epochs]\nx = 3", "setting 'prune.epochs.x'"),
    "a date": (b"seed = 2020-01-01", "--seed datetime.date"),
    "a list": (b"method = ['harp']", "--method ['harp']"),
    "NUL in a name": (b'data = "a\\u0000b"', r"data set 'a\x00b'"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_none(name: str, tmp_path: Path) -> None:
    content, says = RECIPES[name]
    (tmp_path / "recipe.toml").write_bytes(content)
    refused("run", "--recipe", tmp_path / "recipe.toml", code=2, says=(says,))


def test_a_recipe_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("run", "--recipe", tmp_path, code=2, says=("Is a directory",))
    refused("run", "--recipe", tmp_path / "loop", code=2, says=("symbolic links",))
    refused("run", "--recipe", "/dev/zero", code=2, says=("larger than 1,000,000 bytes",))


def test_what_is_odd_and_meant_is_taken() -> None:
    """Minus zero is zero, digits of any script are digits, and names are cut to what fits."""
    assert str(resolve({"eps": "-0/255", "sparsity": -0.0})[0].eps) == "0.0"
    assert str(resolve({"sparsity": -0.0})[0].sparsity) == "0.0"
    assert resolve({"eps": "٨/255"})[0].eps == 8 / 255
    assert resolve({}, settings=["uint8_head=true"])[0].uint8_head
    recipe, _ = resolve({"data": f"folder:a/{'é' * 120}\udcff", "model": f"{LONG}:net"})
    assert len(recipe.name.encode()) < 200
