"""One recipe out of all sources: who wins, where each value came from, and what is refused."""

import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advprune.errors import NotFound, Refused
from advprune.method import get, names
from pipeline.options import RECIPE_OPTIONS, method_options
from pipeline.radius import check_eps
from pipeline.recipe import Recipe, known_keys
from pipeline.resolve import Sources, presets, resolve, to_toml

# Two options of HARP: a share, and a choice.
FIELDS = {name: field.annotation for name, field in get("harp").model_fields.items()}
SHARE = next(name for name, kind in FIELDS.items() if kind is float and name != "sparsity")
CHOICE = next(name for name, kind in FIELDS.items() if get_origin(kind) is Literal)


def settled(
    flags: dict[str, Any] | None = None,
    file: Path | None = None,
    settings: list[str] | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[Recipe, Sources]:
    """`resolve` out of the reach of the variables that this process happens to have."""
    return resolve(flags or {}, file=file, settings=settings, environment=environment or {})


def refused(**given: Any) -> str:
    with pytest.raises(Refused) as refusal:
        settled(**given)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text("seed = 3\neps = '4/255'\n[standard]\nepochs = 33\nlr = 0.3\n")
    return path


# Precedence -------------------------------------------------------------------------------------


def test_every_source_beats_those_before_it(file: Path) -> None:
    # Each source sets one key less than the one before it, so each decides exactly one.
    layers: list[tuple[str, dict[str, Any]]] = [
        (f"file {file}", {"file": file}),
        ("environment", {"environment": {"ADVPRUNE_SEED": "4", "ADVPRUNE_STANDARD__LR": "0.4"}}),
        ("flag", {"flags": {"seed": 5}}),
        ("--set", {"settings": ["seed=6"]}),
    ]
    given: dict[str, Any] = {}
    seen = []
    for source, layer in layers:
        given |= layer
        recipe, sources = settled(**given)
        seen.append(recipe.seed)
        assert sources["seed"] == source
    assert seen == [3, 4, 5, 6]

    recipe, sources = settled(**given)
    assert recipe.standard.lr == 0.4
    assert sources["standard.lr"] == "environment"
    assert recipe.standard.epochs == 33
    assert sources["standard.epochs"] == f"file {file}"
    # The preset of the digits decides what nobody else does; what it leaves open is a default.
    assert recipe.standard.batch_size == 64
    assert sources["standard.batch_size"] == "preset digits"
    assert recipe.split_seed == Recipe().split_seed
    assert "split_seed" not in sources


def test_the_later_of_two_settings_wins() -> None:
    recipe, _ = settled(settings=["seed=1", "seed=2"])
    assert recipe.seed == 2


def test_a_flag_that_was_not_given_changes_nothing(file: Path) -> None:
    recipe, sources = settled(flags={"seed": None}, file=file)
    assert recipe.seed == 3
    assert sources["seed"] == f"file {file}"


@pytest.mark.parametrize(
    ("given", "preset"),
    [
        ({}, "digits"),
        ({"flags": {"data": "svhn"}}, "svhn"),
        ({"flags": {"data": "imagenet"}}, "imagenet"),
        ({"flags": {"data": "folder:photos"}}, "cifar10"),
        ({"environment": {"ADVPRUNE_DATA": "mnist"}}, "cifar10"),
        ({"flags": {"data": "svhn"}, "settings": ["preset=subset"]}, "subset"),
    ],
)
def test_the_preset_is_the_one_for_the_data_unless_named(given: dict, preset: str) -> None:
    recipe, sources = settled(**given)
    assert recipe.preset == preset
    assert sources["model"] == f"preset {preset}"


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_makes_a_recipe_and_says_what_it_is_for(preset: str) -> None:
    recipe, _ = settled(flags={"preset": preset})
    assert recipe.preset == preset
    assert len(presets()[preset]) > 20


def test_text_of_the_environment_and_of_set_is_typed() -> None:
    recipe, _ = settled(
        environment={"ADVPRUNE_UINT8_HEAD": "true", "ADVPRUNE_VERIFY__STEPS": "7", "HOME": "/"},
        settings=["data_dir=/some where/else", "gate.margin=2e-2", " model = resnet18 "],
    )
    assert recipe.uint8_head is True
    assert recipe.verify.steps == 7
    assert recipe.data_dir == Path("/some where/else")
    assert recipe.gate.margin == 0.02
    assert recipe.model == "resnet18"


def test_options_of_a_method_come_from_anywhere() -> None:
    origins: list[dict[str, Any]] = [
        {"flags": {f"options.{SHARE}": 0.5}},
        {"settings": [f"options.{SHARE}=0.5"]},
        {"environment": {f"ADVPRUNE_OPTIONS__{SHARE.upper()}": "0.5"}},
    ]
    for origin in origins:
        recipe, _ = settled(**origin)
        assert recipe.pruning_method().model_dump()[SHARE] == 0.5


# Fractions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"flags": {"eps": "8/255"}},
        {"settings": ["eps=8/255"]},
        {"settings": ['eps="8/255"']},
        {"environment": {"ADVPRUNE_EPS": "8/255"}},
        {"flags": {"eps": str(8 / 255)}},
        {"flags": {"eps": 8 / 255}},
        {"flags": {"eps": " 8 / 255 "}},
    ],
)
def test_eps_is_a_number_or_a_fraction_from_every_source(given: dict) -> None:
    recipe, _ = settled(**given)
    assert recipe.eps == 8 / 255
    assert recipe.threat().eps == 8 / 255


def test_eps_in_a_file_is_a_number_or_a_fraction(file: Path) -> None:
    assert settled(file=file)[0].eps == 4 / 255


@pytest.mark.parametrize(
    ("value", "eps"),
    [(0, 0.0), (1, 1.0), ("0", 0.0), ("1", 1.0), ("0/255", 0.0), ("255/255", 1.0), (1e-9, 1e-9)],
)
def test_both_ends_of_eps_are_allowed(value: object, eps: float) -> None:
    assert check_eps(value) == eps


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-1", "-8/255", "8/0", "8/", "/255", "8/255/2", "a/b", "", "x"]
)
def test_an_eps_that_is_none_is_refused_with_the_remedy(value: str) -> None:
    for message in (refused(flags={"eps": value}), refused(settings=[f"eps={value}"])):
        assert message.startswith("--eps ")
        assert "0 <= eps <= 1, as 0.15 or 8/255" in message
        assert "did you mean" not in message


@pytest.mark.parametrize(("value", "meant"), [(8, "8/255"), ("16", "16/255"), (1.5, "1.5/255")])
def test_an_eps_in_levels_of_grey_is_understood_and_refused(value: object, meant: str) -> None:
    message = refused(flags={"eps": value})
    assert f"--eps {value!r} (from flag)" in message
    assert message.endswith(f"did you mean {meant}?")


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"settings": ["sparsty=0.9"]}, ["--set: setting 'sparsty'", "did you mean sparsity"]),
        ({"settings": ["epochs=3"]}, ["'epochs'", "prune.epochs"]),
        ({"settings": ["prune.epoch=3"]}, ["'prune.epoch'", "did you mean prune.epochs"]),
        ({"settings": ["verify.step=3"]}, ["'verify.step'", "verify.steps"]),
        ({"settings": ["prune=3"]}, ["'prune'"]),
        ({"settings": ["standard.objective=pgd"]}, ["'standard.objective'", "objective"]),
        ({"settings": ["sparsity.x=3"]}, ["'sparsity.x'", "sparsity"]),
        ({"settings": [f"options.{SHARE}e=1"]}, ["option of harp", f"did you mean {SHARE}"]),
        ({"settings": ["options.sparsity=0.5"]}, ["option of harp 'sparsity'"]),
        ({"settings": [f"options.{SHARE}.x=1"]}, [f"'options.{SHARE}.x'"]),
        ({"settings": [f"options.{SHARE}=1", f"options.{SHARE}.x=1"]}, [f"'options.{SHARE}.x'"]),
        ({"settings": ["options=1"]}, ["setting 'options'"]),
        ({"environment": {"ADVPRUNE_SPARSTY": "1"}}, ["environment: setting 'sparsty'"]),
        ({"flags": {"preset": "digts"}}, ["--preset 'digts'", "did you mean digits or imagenet?"]),
        ({"flags": {"method": "hrp"}}, ["--method 'hrp'", "harp"]),
        ({"settings": ["method=magnitud"]}, ["'magnitud'", "did you mean magnitude"]),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest_name(given: dict, words: list) -> None:
    message = refused(**given)
    assert all(word in message for word in words), message


def test_a_file_with_an_unknown_section_or_key_is_refused_naming_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, words in (
        (
            "[standart]\nepochs = 1\n",
            "setting 'standart.epochs' is not known; did you mean stand",
        ),
        ("[verify]\nquerys = 1\n", "setting 'verify.querys' is not known; did you mean ver"),
        ("standard = 3\n", "setting 'standard' is not known"),
        ("[seed]\nx = 3\n", "setting 'seed.x' is not known"),
    ):
        path.write_text(text)
        message = refused(file=path)
        assert message.startswith(f"file {path}: "), message
        assert words in message


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (90, "; did you mean 0.90?"),
        ("90", "; did you mean 0.90?"),
        (99.9, "; did you mean 0.999?"),
        (1, ""),
        (1.0, ""),
        (-0.1, ""),
        (math.nan, ""),
        (math.inf, ""),
        (-math.inf, ""),
    ],
)
def test_a_sparsity_outside_its_range_is_refused(value: object, hint: str) -> None:
    assert refused(flags={"sparsity": value}) == (
        f"--sparsity {value!r} (from flag): sparsity is the share of weights removed, "
        f"0 <= sparsity < 1{hint}"
    )


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 0.999999])
def test_a_sparsity_in_its_range_is_taken(value: float) -> None:
    assert settled(flags={"sparsity": value})[0].sparsity == value


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sparsity=abc", ["--sparsity 'abc'", "valid number"]),
        ("seed=-1", ["--seed -1", "greater than or equal to 0"]),
        ("seed=1.5", ["--seed 1.5", "integer"]),
        ("split_seed=-1", ["--split-seed -1"]),
        ("threads=0", ["--threads 0", "greater than or equal to 1"]),
        ("limit_train=0", ["--limit-train 0", "greater than or equal to 1"]),
        ("limit_test=-5", ["--limit-test -5"]),
        ("image_size=3", ["--image-size 3", "greater than or equal to 4"]),
        ("attack_steps=0", ["--attack-steps 0"]),
        ("beta=-1", ["--beta -1"]),
        ("beta=inf", ["--beta inf", "finite"]),
        ("objective=tradez", ["--objective 'tradez'", "'natural', 'pgd', 'trades', 'mart', 'mad'"]),
        ("prune.objective=tradez", ["prune.objective 'tradez'", "'n-fgsm' or 'free'"]),
        ("compression=0.5", ["--compression 0.5", "greater than or equal to 1"]),
        ("compression=inf", ["--compression inf", "finite"]),
        ("verify.split=val", ["verify.split 'val'", "'test' or 'train'"]),
        ("quantize.calibration=max", ["quantize.calibration 'max'", "'minmax', 'entropy' or"]),
        ("prune.epochs=-3", ["prune.epochs -3", "greater than or equal to 0"]),
        ("prune.epochs=abc", ["prune.epochs 'abc'", "integer"]),
        ("standard.batch_size=0", ["standard.batch_size 0"]),
        ("standard.lr=0", ["standard.lr 0", "greater than 0"]),
        ("standard.lr=nan", ["standard.lr nan", "finite"]),
        ("standard.momentum=1", ["standard.momentum 1", "less than 1"]),
        ("standard.weight_decay=-1", ["standard.weight_decay -1"]),
        ("standard.warmup=1", ["standard.warmup 1", "less than 1"]),
        ("standard.validate_every=-1", ["standard.validate_every -1"]),
        ("verify.steps=0", ["verify.steps 0", "greater than or equal to 1"]),
        ("verify.restarts=0", ["verify.restarts 0"]),
        ("verify.queries=0", ["verify.queries 0"]),
        # A margin of one would pass anything; the gate refuses it, so the recipe does at once.
        ("gate.margin=1", ["gate.margin 1", "less than 1"]),
        ("gate.margin=-0.1", ["gate.margin -0.1"]),
        ("gate.margin=nan", ["gate.margin nan"]),
        ("data=3", ["--data 3", "string"]),
        ("uint8_head=perhaps", ["--uint8-head 'perhaps'"]),
        (f"options.{SHARE}=-1", [f"options.{SHARE} -1", "greater than"]),
        (f"options.{SHARE}=inf", [f"options.{SHARE} inf", "finite"]),
        (f"options.{CHOICE}=none", [f"options.{CHOICE} 'none'", *get_args(FIELDS[CHOICE])]),
        ("prune.epochs", ["--set 'prune.epochs'", "expected KEY=VALUE"]),
        ("=3", ["--set '=3'", "expected KEY=VALUE"]),
    ],
)
def test_a_value_out_of_range_is_refused_naming_option_value_and_remedy(
    setting: str, words: list[str]
) -> None:
    message = refused(settings=[setting])
    assert message.startswith(words[0]), message
    assert all(word in message for word in words[1:]), message


def test_a_file_that_is_missing_or_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"--recipe .*none\.toml: no such file") as refusal:
        settled(file=tmp_path / "none.toml")
    assert refusal.value.exit_code == 66
    for text in (b"seed = ", b"seed = 1\nseed = 2\n", b"\xff\xfe"):
        path = tmp_path / "broken.toml"
        path.write_bytes(text)
        assert f"--recipe {path}: not a TOML file" in refused(file=path)
    assert "not a TOML file" in refused(file=tmp_path)


# What is written down ---------------------------------------------------------------------------


def test_the_written_recipe_says_where_each_value_came_from(file: Path) -> None:
    text = to_toml(*settled(flags={"sparsity": 0.5}, file=file, settings=[f"options.{SHARE}=0.25"]))
    lines = text.splitlines()
    assert "sparsity = 0.5  # flag" in lines
    assert f"seed = 3  # file {file}" in lines
    assert "split_seed = 0  # default" in lines
    assert "batch_size = 64  # preset digits" in lines
    assert lines[lines.index("[options]") + 1] == f"{SHARE} = 0.25  # --set"


_NAMES = st.text(min_size=1, max_size=12).filter(
    lambda text: text.isprintable() and text.strip() == text and "=" not in text
)


@settings(deadline=None, max_examples=50)
@given(
    sparsity=st.floats(0, 1, exclude_max=True),
    eps=st.floats(0, 1),
    lr=st.floats(1e-300, 1e300),
    seed=st.integers(0, 2**64 - 1),
    data_dir=_NAMES,
    data=_NAMES,
    limit=st.none() | st.integers(1, 10**6),
    method=st.sampled_from(names()),
    preset=st.sampled_from(sorted(presets())),
    compression=st.none() | st.floats(1, 1e6),
    baseline=st.none() | _NAMES,
)
def test_a_written_recipe_resolves_to_itself(
    tmp_path_factory: pytest.TempPathFactory,
    sparsity: float,
    eps: float,
    lr: float,
    seed: int,
    data_dir: str,
    data: str,
    limit: int | None,
    method: str,
    preset: str,
    compression: float | None,
    baseline: str | None,
) -> None:
    flags = {
        "sparsity": sparsity if compression is None else None,
        "compression": compression,
        "preset": preset,
        "eps": eps,
        "finetune.lr": lr,
        "seed": seed,
        "data_dir": data_dir,
        "data": f"folder:{data}",
        "limit_test": limit,
        "method": method,
        "gate.baseline": baseline,
    }
    recipe, sources = settled(flags=flags)
    path = tmp_path_factory.mktemp("again") / "recipe.toml"
    path.write_text(to_toml(recipe, sources), encoding="utf-8")
    assert settled(file=path)[0] == recipe


# The options of the command line ----------------------------------------------------------------


def test_every_option_is_a_setting() -> None:
    keys = known_keys()
    assert len(keys) == len(set(keys))
    assert all(option.key in keys for option in RECIPE_OPTIONS if option.key)


@pytest.mark.parametrize("method", names())
def test_every_field_of_a_method_is_an_option_with_a_name_of_its_own(method: str) -> None:
    options = method_options(["run", "--method", method])
    fields = set(get(method).model_fields) - {"sparsity"}
    assert {option.key for option in options} == {f"options.{field}" for field in fields}
    taken = {option.name for option in RECIPE_OPTIONS}
    assert not taken & {option.name for option in options}
    assert all(option.help for option in options)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--method", "hydra"],
        ["plan", "--seed", "3", "--method=hydra"],
        ["run", "-m", "hydra"],
        ["run", "-mhydra"],
        ["run", "--method", "harp", "--method", "hydra"],
    ],
)
def test_the_method_is_found_however_it_is_named(words: list[str]) -> None:
    assert {option.key for option in method_options(words)} == {
        f"options.{field}" for field in get("hydra").model_fields if field != "sparsity"
    }


def test_other_commands_and_no_method_add_no_options() -> None:
    for words in ([], ["run"], ["run", "--method"], ["verify", "--method", "harp"]):
        assert method_options(words) == []
