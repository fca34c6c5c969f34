"""--freeze finds the layers that its patterns name, and a run leaves them as they were."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from bad_input import refused
from safetensors.torch import load_file
from stage_runs import SMALL, Runner
from test_stages import configs
from torch import Tensor, nn

from advprune.data import load as load_images
from advprune.errors import BadData, Refused
from advprune.models import Architecture, build, prunable, weighted
from advprune.models.checkpoint import load, load_architecture
from advprune.models.freezing import freeze, layers_to_freeze
from advprune.stats import layer_macs
from export import graph
from pipeline.beginning import begin, identity

pytest_plugins = ["bad_input_fixtures"]

DIGITS = Architecture("digits_resnet", 10, (1, 8, 8), (0.25,), (0.5,))


class Wandering(nn.Module):
    """Registered in another order than images meet its layers; two of them share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.apart = nn.BatchNorm2d(4)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.again.weight = self.body.weight
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = self.apart(torch.relu_(self.body(x)))
        return self.head(self.again(x).mean(dim=(2, 3)))


def wandering() -> nn.Module:
    return nn.Sequential(OrderedDict(network=Wandering()))


def found(net: nn.Module, *patterns: str, side: int = 8) -> list[str]:
    names = layers_to_freeze(net, (1, side, side), patterns)
    return [name.removeprefix("network.") for name in names]


# Which layers


def test_the_stem_is_the_first_layer_that_reads_the_images_and_its_norm_goes_with_it() -> None:
    assert found(wandering(), "stem") == ["norm", "first"]
    net = build(DIGITS)
    conv, norm = found(net, "stem")
    assert f"network.{conv}.weight" == next(iter(weighted(net)))
    assert isinstance(net.get_submodule(f"network.{norm}"), nn.BatchNorm2d)


def test_a_layer_that_is_called_stem_goes_before_the_first() -> None:
    net = wandering()
    net.network.add_module("stem", nn.Conv2d(4, 4, 1))  # pyright: ignore
    assert found(net, "stem") == ["stem"]


def test_a_norm_behind_a_relu_in_place_does_not_follow_the_layer_directly() -> None:
    assert found(wandering(), "body") == ["again", "body"]
    assert found(wandering(), "body", "apart") == ["apart", "again", "body"]


def test_a_glob_takes_all_that_match_and_norms_by_their_names() -> None:
    assert found(wandering(), "ap*", "network.head") == ["head", "apart"]
    assert found(wandering(), "[ah]*d") == ["head"]


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"--freeze 'bodi': matches no layer; nearest: body, "):
        found(wandering(), "head", "bodi")


def test_to_freeze_all_that_can_be_pruned_is_refused() -> None:
    with pytest.raises(Refused, match=r"--freeze stem body head: freezes all 4 layers"):
        found(wandering(), "stem", "body", "head")


def test_to_look_leaves_the_network_as_it_was() -> None:
    net = wandering().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found(net, "stem")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in net.modules())


# What becomes of them


def test_frozen_layers_are_built_again_frozen_and_counted_apart() -> None:
    net = build(DIGITS)
    names = layers_to_freeze(net, DIGITS.shape, ["stem"])
    arch = Architecture.from_dict({**DIGITS.to_dict(), "frozen": list(names)})
    assert arch.to_dict()["frozen"] == [*names] and "frozen" not in DIGITS.to_dict()
    bound = build(arch)
    assert weighted(bound).keys() - prunable(bound).keys() == {f"{names[0]}.weight"}
    assert layer_macs(bound, arch.shape) == layer_macs(net, arch.shape)
    learning = {name for name, p in bound.named_parameters() if not p.requires_grad}
    assert {name.rpartition(".")[0] for name in learning} == {*names}
    norm = bound.train().get_submodule(names[1])
    assert bound.training and not norm.training


def test_a_copy_keeps_its_own_norms_in_eval_mode() -> None:
    import copy

    net = wandering()
    freeze(net, ["network.norm"])
    twin = copy.deepcopy(net)
    net.get_submodule("network.norm").training = True
    twin.train()
    assert not twin.get_submodule("network.norm").training
    assert net.get_submodule("network.norm").training
    assert twin.get_submodule("network.apart").training


@pytest.mark.parametrize("value", ["network.conv", [1], None])
def test_an_architecture_with_other_than_names_is_refused(value: object) -> None:
    with pytest.raises(BadData, match="frozen must be names of layers"):
        Architecture.from_dict({**DIGITS.to_dict(), "frozen": value})


@pytest.mark.parametrize(
    "settings",
    [{"method": "hydra"}, {"method": "magnitude", "options": {"granularity": "channel"}}],
    ids=["weights", "channels"],
)
def test_a_run_keeps_frozen_layers_from_the_first_stage_to_the_8_bits(
    settings: dict, tmp_path: Path
) -> None:
    recipe = SMALL.model_copy(update={"freeze": ("stem",), "sparsity": 0.5, **settings})
    runner = Runner(recipe, tmp_path / "runs")
    states: dict[str, dict[str, Tensor]] = {}
    for stage in ("data", "standard", "adversarial", "prune", "finetune", "quantize"):
        made = runner.build(stage)
        if stage not in ("data", "quantize"):
            states[stage] = load_file(made.file("weights.safetensors"))
    folder = runner.made["finetune"].check()
    names = load_architecture(folder).frozen
    shown = " ".join(name.removeprefix("network.") for name in names)
    assert runner.made["standard"].metrics["frozen_layers"] == shown
    fresh = build(DIGITS, seed=recipe.seed).state_dict()
    for stage, state in states.items():
        for name, value in state.items():
            if name.rpartition(".")[0] in names:
                # Not even counted: that of a fresh network is zero.
                assert torch.equal(value, fresh[name]), (stage, name)
    assert f"{names[0]}.weight" not in prunable(load(folder))
    metrics = runner.made["prune"].metrics
    if "channels_total" in metrics:
        # Half of the channels, but in widths that are multiples of eight.
        assert 0.3 < int(metrics["channels_kept"]) / int(metrics["channels_total"]) <= 0.5
    else:
        assert metrics["sparsity"] == pytest.approx(0.5, abs=1 / int(metrics["total"]))
    quantised = runner.made["quantize"]
    assert quantised.metrics["quantisation"] == "ptq"
    assert "frozen" in str(quantised.metrics["no_training"])
    # The codes are the frozen kernel, folded and rounded: nearly all of it is there.
    constants = graph.constants(graph.load(quantised.file("model.int8.onnx")))
    name = next(key for key in constants if key.endswith("_quantized"))
    kernel = fresh[f"{names[0]}.weight"]
    assert constants[name].shape == kernel.shape
    assert (constants[name] != 0).mean() > 0.9


# The words


def test_freezing_changes_the_first_stage_and_training_through_8_bits() -> None:
    before, after = configs({}), configs({"freeze": ("stem",)})
    assert {n for n in before if before[n] != after[n]} == {"standard", "quantize", "report"}
    assert "freeze" not in before["standard"]


def words(root: Path) -> list[str]:
    """Images that nobody could read."""
    (root / "train").mkdir(exist_ok=True)
    (root / "train" / "broken.png").write_bytes(b"no image")
    return ["--data", f"folder:{root}", "--preset", "digits"]


def test_a_pattern_is_refused_before_images_are_read(tmp_path: Path, empty_folder: Path) -> None:
    says = ("--freeze 'linaer': matches no layer; nearest: linear, ",)
    refused("plan", "--freeze", "linaer", *words(tmp_path), code=2, says=says)
    says = ("--freeze *: freezes all ",)
    refused("plan", "--freeze", "*", *words(tmp_path), code=2, says=says)


def test_a_network_for_these_images_alone_is_looked_at_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grey_only.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    assert in_channels == 1\n"
        "    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = load_images("digits", data_dir=Path(), limit_train=1024, limit_test=30)
    recipe = SMALL.model_copy(update={"model": "grey_only:make", "freeze": ("stem",)})
    assert identity(recipe)["freeze"] == ["stem"]
    assert begin(recipe, images).architecture.frozen == ("network.0",)
    with pytest.raises(Refused, match="freezes all 2 layers"):
        begin(recipe.model_copy(update={"freeze": ("*",)}), images)


def test_training_through_8_bits_is_declined() -> None:
    says = ("--quantize qat would train what --freeze stem keeps; give --quantize ptq",)
    refused("plan", "--freeze", "stem", "--quantize", "qat", code=2, says=says)
