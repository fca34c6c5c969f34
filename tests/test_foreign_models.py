"""Networks from elsewhere keep the contract too, or are refused in one line."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from advprune import models
from advprune.errors import Incompatible, NotFound, Refused
from advprune.models import Architecture


def arch(model: str, classes: int = 10, channels: int = 3, side: int = 32) -> Architecture:
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return Architecture(model, classes, (channels, side, side), mean, std)


def images(count: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


# --- torchvision ---


@pytest.mark.parametrize(
    ("name", "channels", "side"),
    [
        ("mobilenet_v2", 1, 64),
        ("googlenet", 3, 64),
        ("torchvision:resnet18", 3, 64),
        # As in GAP (greedy adversarial pruning): their last maps are one pixel then.
        ("mobilenet_v2", 3, 32),
        ("googlenet", 3, 32),
    ],
)
def test_torchvision_classifiers_are_built_without_weights(
    name: str, channels: int, side: int
) -> None:
    net = models.build(arch(name, 7, channels, side))
    again = models.build(arch(name, 7, channels, side)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    assert first.in_channels == channels
    assert first.stride == (2, 2)
    # Auxiliary heads would make a tuple of the output in training mode only.
    for mode in (True, False):
        logits = net.train(mode)(images(2, channels, side))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


def test_our_network_wins_under_a_bare_name_and_the_prefix_reaches_torchvisions() -> None:
    theirs = models.build(arch("torchvision:resnet18", side=64))
    ours = models.build(arch("resnet18"))
    assert models.prunable(theirs)["network.conv1.weight"].weight.shape == (64, 3, 7, 7)
    assert models.prunable(ours)["network.conv1.weight"].weight.shape == (64, 3, 3, 3)
    assert "vgg16_bn" in models.torchvision_names()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet81", "resnet18"), ("torchvision:resnet51", "torchvision:resnet50")],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, nearest: str) -> None:
    with pytest.raises(Refused, match=f"{name}.*{nearest}.*`advprune models`") as refusal:
        models.build(arch(name))
    assert refusal.value.exit_code == 2


def test_an_image_too_small_for_the_network_is_refused() -> None:
    with pytest.raises(Incompatible, match=r"'vgg16_bn' cannot take images of shape \(1, 8, 8\)"):
        models.build(arch("vgg16_bn", channels=1, side=8))


# --- a user's own network ---

NETS = """
import torch
from torch import nn

class Named(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=4):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.linear = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))

def fixed():
    return Named(10)

def passes_on(**kwargs):
    return Named(**kwargs)

def five():
    return Named(5)

def double():
    return Named(10).double()

def pair():
    class Pair(Named):
        def forward(self, x):
            out = super().forward(x)
            return out, out
    return Pair(10)

def not_a_module(num_classes):
    return [num_classes]

def needs_more(num_classes, depth):
    return Named(num_classes)

def explodes(num_classes):
    raise RuntimeError("first line\\nsecond line")

constant = 3
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package in the current folder that is not on the import path."""
    package = f"nets_{tmp_path.name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "zoo.py").write_text(NETS)
    (tmp_path / package / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / package / "invalid.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    return package


@pytest.mark.parametrize(
    ("factory", "channels"), [("Named", 1), ("Named", 3), ("fixed", 3), ("passes_on", 3)]
)
def test_a_factory_of_the_current_folder_is_built(nets: str, factory: str, channels: int) -> None:
    path = list(sys.path)
    spec = f"{nets}.zoo:{factory}"
    net = models.build(arch(spec, channels=channels, side=8))
    assert net(images(2, channels, 8)).shape == (2, 10)
    assert list(models.prunable(net)) == ["network.conv.weight", "network.linear.weight"]
    again = models.build(arch(spec, channels=channels, side=8)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        ("zoo:five", Incompatible, r"\(2, 10\), gave torch.float32 \(2, 5\)"),
        ("zoo:double", Incompatible, "cannot take images"),
        ("zoo:pair", Incompatible, "gave tuple"),
        ("zoo:not_a_module", Refused, "returned list"),
        ("zoo:needs_more", Incompatible, "depth"),
        ("zoo:explodes", Incompatible, "first line second line"),
        ("zoo:constant", Refused, "not callable"),
        ("zoo:absent", NotFound, "has no 'absent'"),
        ("broken:f", NotFound, "nowhere_to_be_found"),
        ("invalid:f", NotFound, "SyntaxError"),
        ("missing:f", NotFound, "missing"),
    ],
)
def test_a_bad_factory_is_refused_in_one_line(
    nets: str, factory: str, error: type[Refused], words: str
) -> None:
    with pytest.raises(error, match=words) as refusal:
        models.build(arch(f"{nets}.{factory}", side=8))
    assert type(refusal.value) is error
    assert "\n" not in str(refusal.value)
    assert f"{nets}.{factory}" in str(refusal.value)
