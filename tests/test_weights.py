"""A run can begin with the weights of a file: whole but for its classes, or refused at once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bad_input import refused
from stage_runs import SMALL, Runner
from test_stages import configs
from torch import Tensor, nn

from advprune import models
from advprune.data import ImageSet, load
from advprune.errors import BadData, Incompatible
from advprune.models import Architecture
from advprune.models.checkpoint import load as load_network
from pipeline.beginning import begin
from pipeline.recipe import Recipe

pytest_plugins = ["bad_input_fixtures"]

State = dict[str, Tensor]
HEAD = "network.linear"


def digits() -> ImageSet:
    return load("digits", data_dir=Path(), limit_train=1024, limit_test=30)


def network(classes: int = 10, model: str = "digits_resnet", seed: int = 5) -> nn.Module:
    """One whose every number, statistics included, is not what a fresh network has."""
    net = models.build(Architecture(model, classes, (1, 8, 8), (0.25,), (0.5,)), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, value in net.network.state_dict().items():  # pyright: ignore
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=random) + 0.5
            net.network.state_dict()[name].copy_(noise)  # pyright: ignore
    return net


def inner(net: nn.Module) -> State:
    state = net.network.state_dict()  # pyright: ignore
    return {name: value.clone() for name, value in state.items()}


def written(state: State, path: Path) -> Path:
    safetensors.torch.save_file(state, path)
    return path


def begun(path: Path, **settings: object):
    recipe = SMALL.model_copy(update={"weights": path, **settings})
    return begin(recipe, digits())


def same(state: State, expected: State) -> set[str]:
    """The names that differ."""
    assert state.keys() == expected.keys()
    return {name for name, value in state.items() if not torch.equal(value, expected[name])}


def test_every_weight_and_statistic_is_that_of_the_file(tmp_path: Path) -> None:
    given = inner(network())
    start = begun(written(given, tmp_path / "w.safetensors"))
    assert same(inner(start.net), given) == set()
    assert "begins anew" not in start.told


def test_a_head_for_other_classes_begins_anew_as_it_would_without_the_file(tmp_path: Path) -> None:
    given = inner(network(classes=7))
    start = begun(written(given, tmp_path / "w.safetensors"))
    fresh = models.build(start.architecture, seed=SMALL.seed)
    heads = {f"{HEAD}.weight", f"{HEAD}.bias"}
    for name, value in start.net.state_dict().items():
        bare = name.removeprefix("network.")
        expected = fresh.state_dict()[name] if name in heads or bare == name else given[bare]
        assert torch.equal(value, expected), name
    assert start.told.endswith(f"{HEAD} begins anew: 7 classes there, 10 here")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_are_taken(kind: torch.dtype, tmp_path: Path) -> None:
    given = {n: v.to(kind) if v.is_floating_point() else v for n, v in inner(network()).items()}
    start = begun(written(given, tmp_path / "w.safetensors"))
    assert all(torch.equal(v, given[n].to(v.dtype)) for n, v in inner(start.net).items())


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_file_of_torch_is_as_good(suffix: str, tmp_path: Path) -> None:
    given = inner(network())
    torch.save({"state_dict": given}, tmp_path / f"w{suffix}")
    assert same(inner(begun(tmp_path / f"w{suffix}").net), given) == set()


# Normalisation ----------------------------------------------------------------------------------


def test_a_file_of_ours_brings_the_statistics_that_it_was_trained_under(tmp_path: Path) -> None:
    path = written(network().state_dict(), tmp_path / "w.safetensors")
    start = begun(path)
    assert (start.architecture.mean, start.architecture.std) == ((0.25,), (0.5,))
    assert start.net.normalize.mean.item() == 0.25  # pyright: ignore
    with pytest.raises(Incompatible, match=r"mean 0.25 and std 0.5; leave --normalize out"):
        begun(path, normalize="none")


@pytest.mark.parametrize(
    ("how", "mean", "std"),
    [
        ("none", (0.0,) * 3, (1.0,) * 3),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisation_is_as_the_recipe_says(how: str, mean: object, std: object) -> None:
    grey = digits()
    parts = ("train", "val", "calib", "test")
    colours = replace(
        grey,
        **{
            name: replace(getattr(grey, name), images=getattr(grey, name).images.repeat(1, 3, 1, 1))
            for name in parts
        },
    )
    recipe = SMALL.model_copy(update={"normalize": how})
    start = begin(recipe, colours)
    assert (start.architecture.mean, start.architecture.std) == (mean, std)
    by_data = begin(SMALL, colours).architecture
    assert (by_data.mean, by_data.std) == colours.mean_std()
    if how == "imagenet":
        with pytest.raises(Incompatible, match="has 3 colours, images of digits have 1"):
            begin(recipe, grey)


# In a run ---------------------------------------------------------------------------------------


def recipe_with(path: Path, **settings: object) -> Recipe:
    standard = SMALL.standard.model_copy(update={"epochs": 0})
    update = {"weights": path, "standard": standard, **settings}
    return SMALL.model_copy(update=update)


def test_no_epochs_leave_the_weights_as_they_are_and_what_follows_keeps_their_statistics(
    tmp_path: Path,
) -> None:
    net = network()
    path = written(net.state_dict(), tmp_path / "w.safetensors")
    runner = Runner(recipe_with(path), tmp_path / "runs")
    runner.build("data")
    made = runner.build("standard")
    assert same(dict(load_network(made.path).state_dict()), dict(net.state_dict())) == set()
    assert str(made.metrics["began"]).startswith("began from weights ")
    hardened = runner.build("adversarial").path
    assert json.loads((hardened / "architecture.json").read_text())["mean"] == [0.25]
    assert load_network(hardened).normalize.std.item() == 0.5  # pyright: ignore


def test_the_key_is_of_the_content_and_not_of_the_path(tmp_path: Path) -> None:
    net = network()
    one, copy = (written(inner(net), tmp_path / f"{name}.safetensors") for name in "ab")
    other = written(inner(network(seed=6)), tmp_path / "c.safetensors")

    def key(path: Path | None) -> object:
        return configs({"weights": path})["standard"]

    assert key(one) == key(copy)
    assert key(one) != key(other)
    assert key(one) != key(None)
    assert "weights" not in configs({})["standard"]  # runs from before keep their keys


def test_a_file_that_changes_under_a_run_is_not_used(tmp_path: Path) -> None:
    path = written(inner(network()), tmp_path / "w.safetensors")
    runner = Runner(recipe_with(path), tmp_path / "runs")
    runner.build("data")
    written(inner(network(seed=6)), path)
    with pytest.raises(BadData, match="changed since this command began"):
        runner.build("standard")


# Refusals ---------------------------------------------------------------------------------------


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def having(name: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (without("conv1.weight"), 78, "network.conv1.weight float32 (32, "),
        (without("linear.bias"), 78, "network.linear.bias float32 (10,) is missing"),
        (having("mask", torch.ones(2)), 78, "network.mask float32 (2,) is unknown"),
        (
            having("linear.weight", torch.ones(7, 5)),
            78,
            "network.linear.weight is float32 (7, 5), must be float32 (7, ",
        ),
        (having("linear.bias", torch.ones(7)), 78, "network.linear.bias is float32 (7,), must be"),
        (having("bn1.weight", torch.full((32,), torch.nan)), 65, "network.bn1.weight holds 32 NaN"),
        (lambda _: inner(network(model="resnet20")), 78, "weights of another network"),
        (lambda _: {"w": torch.ones(3)}, 78, "weights of another network"),
    ],
    ids=lambda value: None if callable(value) else str(value)[:30],
)
@pytest.mark.usefixtures("empty_folder")
def test_weights_that_do_not_fit_are_refused_before_anything_runs(
    change: Callable[[State], State], code: int, says: str, tmp_path: Path
) -> None:
    path = written(change(inner(network())), tmp_path / "w.safetensors")
    for command in ("run", "plan"):
        message = refused(command, "--weights", path, code=code, says=(says,))
        assert message.startswith(str(path))


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("missing.pt", None, 66, "No such file"),
        ("text.txt", b"weights", 65, "not a known kind"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{}", 65, "not a safetensors file"),
        ("cut.pt", b"PK\x03\x04 and no more", 65, "not a PyTorch checkpoint"),
    ],
)
@pytest.mark.usefixtures("empty_folder")
def test_a_file_that_holds_no_weights_is_refused_at_once(
    name: str, content: bytes | None, code: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    refused("run", "--weights", path, code=code, says=(str(path), says))
