"""`advprune models NAME` says what can be pruned as it is: by the units that methods prune."""

import pytest
import torch
from tiny_run import advprune, refusal
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from advprune import models
from advprune.coupling import couple
from advprune.models import Architecture, build
from advprune.prunability import Prunability, Row, inspect
from advprune.semi_structured import TwoOfFour
from advprune.units import SingleWeights

SHAPE = (3, 16, 16)


class Odd(nn.Module):
    """One layer of each kind that keeps its channels, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.behind = nn.Conv2d(8, 12, 1)
        self.up = nn.ConvTranspose2d(12, 12, 1)
        self.wide = nn.Conv2d(12, 8, 1)
        self.bn = nn.BatchNorm2d(8)
        self.shifted = nn.Conv2d(8, 8, 1)
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))
        self.tokens = nn.Conv2d(8, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.free(x))
        x = self.bn(self.wide(self.up(self.behind(x))))
        x = self.tokens(self.shifted(x) + self.shift)
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(mixed.mean(1))


class Chain(nn.Module):
    """Channels that go alone, together, and only because a depthwise layer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 6, 1)
        self.beside = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.first(x)).relu()
        return self.head((self.second(x) + self.beside(x)).mean((2, 3)))


def rows_of(found: Prunability) -> dict[str, Row]:
    return {row.name: row for row in found.rows}


def test_each_kind_of_layer_is_told_with_its_reason() -> None:
    rows = rows_of(inspect(Odd().eval(), SHAPE))
    assert [row.name for row in rows.values() if not row.prunable] == [
        "",  # the shift
        "up",
        "bn",
        "attention",
    ]
    assert rows["bn"].norm and not rows["up"].norm
    for name in ("free", "grouped"):
        assert rows[name].why == "they pass a grouped convolution, which cannot lose single ones"
    assert rows["behind"].why == "they pass a ConvTranspose2d, which cannot lose single ones"
    assert rows["shifted"].why == "they meet a parameter that belongs to no layer"
    assert rows["head"].why == "they are the logits"
    assert rows["unused"].why.startswith("the trace does not see it")
    assert rows["attention"].weights == 3 * 8 * 8 + 3 * 8
    assert rows[""].shape == (8, 1, 1)
    assert rows["grouped"].kind == "Conv2d, 2 groups"
    # A reason, or a group: every layer that makes channels has one of the two.
    for name in models.prunable(Odd()):
        row = rows[name.removesuffix(".weight")]
        assert bool(row.why) != bool(row.channels), name


def test_what_goes_together_is_named() -> None:
    found = inspect(Chain().eval(), SHAPE, "channel")
    rows = rows_of(found)
    goes = {name: row.channels for name, row in rows.items()}
    assert goes == {
        "first": "first",
        "depthwise": "first",
        "second": "second",
        "beside": "second",
        "head": None,
    }
    assert rows["depthwise"].kind == "Conv2d, depthwise"
    assert (found.channels, found.groups) == (14, 2)
    assert all(row.prunable for row in rows.values())  # the head loses inputs


def test_nothing_that_can_be_removed_is_an_answer() -> None:
    found = inspect(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)), SHAPE, "channel")
    assert (found.channels, found.groups) == (0, 0)
    assert not any(row.prunable for row in found.rows)


@pytest.mark.parametrize(
    "name", ["digits_resnet", "resnet20", "mobilenet_v2_cifar", "googlenet_cifar"]
)
def test_the_report_agrees_with_what_methods_prune(name: str) -> None:
    shape = (3, 32, 32)
    net = build(Architecture(name, 10, shape, (0.0,) * 3, (1.0,) * 3))
    by_weight = rows_of(inspect(net, shape))
    by_four, by_channel = (rows_of(inspect(net, shape, each)) for each in ("2:4", "channel"))

    def chosen(rows: dict[str, Row]) -> dict[str, int]:
        return {f"{name}.weight": row.weights for name, row in rows.items() if row.prunable}

    assert chosen(by_weight) == SingleWeights(net).sizes
    assert chosen(by_four) == TwoOfFour(net).sizes
    groups = couple(net, shape)
    changed = {slot.weight for group in groups for slot in (*group.makers, *group.readers)}
    assert chosen(by_channel).keys() == changed
    makers = {slot.layer for group in groups for slot in group.makers}
    assert {name for name, row in by_channel.items() if row.channels} == makers
    # Against torch's own counter, which counts two operations for each.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    assert sum(row.macs for row in by_weight.values()) * 2 == counter.get_total_flops()
    assert sum(row.weights for row in by_weight.values() if not row.prunable) <= sum(
        parameter.numel() for parameter in net.parameters()
    )


def test_the_command_tells_it_to_people_and_programs() -> None:
    words = ("models", "digits_resnet", "--channels", "1", "--image-size", "8")
    document = advprune(*words, "--json").json
    assert document["shape"] == [1, 8, 8]
    assert document["totals"]["prunable"] == sum(
        layer["weights"] for layer in document["layers"] if layer["prunable"]
    )
    text = advprune(*words).out
    assert "they are the logits" in text
    assert f"{document['totals']['prunable']:,} of {document['totals']['parameters']:,}" in text
    for layer in document["layers"]:
        assert layer["norm"] or layer["name"].removeprefix("network.") in text


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nonet",), 2, "is not known"),
        (("digits_resnet", "--granularity", "chanel"), 2, "did you mean channel?"),
        (("digits_resnet", "--image-size", "0"), 2, "must be three sizes"),
        (("digits_resnet", "--classes", "1"), 2, "classes must be an integer in [2, "),
        (("digits_resnet", "--channels", "-1"), 2, "must be three sizes"),
        (("lenet5_caffe", "--image-size", "8"), 78, "cannot take images of shape (3, 8, 8)"),
        (("no_such_module:net",), 66, "cannot import"),
    ],
)
def test_nonsense_is_refused(words: tuple[str, ...], code: int, says: str) -> None:
    assert says in refusal(advprune("models", *words), code)
