"""Promise: the table of attacks compares like with like, and says of each what was measured."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx.parser
import pytest
import torch
from attack_nets import digit_net, digits
from scripts import script
from stage_runs import SMALL, Runner
from torch import Tensor, nn

from advprune.types import Threat
from pipeline.beginning import begin
from pipeline.stage import Context, Metrics, Stage
from pipeline.stages.quantize import FLOAT
from pipeline.stages.training import images_of, write_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("attacks")


class Counting(nn.Module):
    """A network that counts the batches that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        return self.net(x)


def make_case(bench: ModuleType, eps: float, steps: int, queries: int) -> Any:
    net, engine = Counting(digit_net()), Counting(digit_net())
    return bench.Case(net, engine, digits(40), Threat(eps), steps, queries, targets=9)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_both_sides_of_every_line_attack_alike(bench: ModuleType) -> None:
    case = make_case(bench, 0.06, steps=10, queries=30)
    found = bench.measure(case, bench.PARTS, rounds=1)
    lines = [cells(line) for line in bench.table(bench.PARTS, found).splitlines()]
    assert {len(line) for line in lines} == {9}
    assert [":".join(line[:2]) for line in lines[2:]] == list(bench.PARTS)
    x, y = case.shown
    clean = (case.net(x).argmax(dim=1) == y).sum()
    for name, line in zip(bench.PARTS, lines[2:], strict=True):
        assert re.fullmatch(r"\*\*[\d.]+\*\* \([\d.]+-[\d.]+\)", line[4])
        (ours,), (theirs,) = (found[side] for side in bench.PARTS[name])
        assert min(ours.seconds, theirs.seconds) > 0.0
        assert 0 < ours.right.sum() < clean
        # Short random searches differ more than searches along a gradient.
        assert (ours.right != theirs.right).sum() <= (8 if "quare" in name else 2), name


def test_a_side_of_two_lines_is_timed_once_a_round(bench: ModuleType) -> None:
    names = ["pyautoattack:apgd-ce", "torchattacks:APGD"]
    found = bench.measure(make_case(bench, 0.06, steps=2, queries=2), names, rounds=3)
    assert [len(calls) for calls in found.values()] == [3, 3, 3]


@pytest.fixture
def shared(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Folding leaves the network as it is, so that what is asked can be counted; those folded."""
    networks: list[nn.Module] = []

    def unfolded(net: nn.Module, images: Tensor) -> nn.Module:
        networks.append(net)
        return net

    monkeypatch.setattr(bench, "folded", unfolded)
    return networks


def asked(side: Any, case: Any) -> int:
    """Batches that one call of a side asks about, network and engine together."""
    case.net.batches = case.engine.batches = 0
    with torch.random.fork_rng():
        side(case, 0)
    return case.net.batches + case.engine.batches


def test_every_effort_reaches_both_sides(bench: ModuleType, shared: list[nn.Module]) -> None:
    case = make_case(bench, 0.001, steps=2, queries=3)  # too near for any image to leave
    efforts = {"steps": 3, "queries": 4, "targets": 2}
    for name, sides in bench.PARTS.items():
        attack = name.partition(":")[2].lower()
        takes = {"steps"}
        if attack in ("apgd-t", "apgdt", "fab-t", "fab"):
            takes |= {"targets"}
        if "square" in attack:
            takes = {"queries"}
        if "standard" in attack:
            takes = set(efforts)
        for side in sides:
            before = asked(side, case)
            more = {e for e, n in efforts.items() if asked(side, replace(case, **{e: n})) != before}
            assert more == takes, name


def test_ours_is_folded_and_theirs_is_not(bench: ModuleType, shared: list[nn.Module]) -> None:
    case = make_case(bench, 0.06, steps=1, queries=1)
    for ours, theirs in bench.PARTS.values():
        asked(ours, case)
        assert shared == [case.net]
        asked(theirs, case)
        assert shared == [case.net]
        shared.clear()


def test_square_alone_asks_the_engine(bench: ModuleType, shared: list[nn.Module]) -> None:
    case = make_case(bench, 0.001, steps=3, queries=5)
    for name, (ours, theirs) in bench.PARTS.items():
        asked(theirs, case)
        assert case.engine.batches == 0
        asked(ours, case)
        # What is left, its queries, and what it found.
        assert case.engine.batches == (1 + 5 + 1 if name.endswith("engine") else 0)


def test_ratios_are_of_the_same_round(bench: ModuleType) -> None:
    def right(*images: int) -> Tensor:
        return torch.tensor([image in images for image in range(4)])

    ours, theirs = bench.PARTS["torchattacks:PGD"]
    found = {
        ours: [
            bench.Timed(1.0, right(0, 1)),
            bench.Timed(2.0, right(0, 1)),
            bench.Timed(1.0, right(1)),
        ],
        theirs: [
            bench.Timed(4.0, right(0, 1)),
            bench.Timed(4.0, right(0, 1, 3)),
            bench.Timed(10.0, right(0, 2, 3)),
        ],
    }
    assert bench.table(["torchattacks:PGD"], found).splitlines()[2] == (
        "| torchattacks | PGD | 1.0 | 4.0 | **4.0** (2.0-10.0) | 50.0 % | 75.0 % | 0-3 | 0-1 |"
    )


# The command -----------------------------------------------------------------------------------


def start(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["attacks.py", *map(str, words)])
    bench.main()


# Ten pixels are its logits: to export the network itself takes longer than all that is tested.
FILE = """<ir_version: 10, opset_import: ["": 17]>
small (float[batch, 1, 8, 8] images) => (float[batch, 10] logits) {
    flat = Flatten(images)
    ten = Constant<value_ints = [2, 10, 18, 26, 34, 42, 50, 58, 3, 4]>()
    logits = Gather<axis = 1>(flat, ten)
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a run as is attacked: a network that was never trained, and a file of another."""

    def finetune(context: Context) -> Metrics:
        images = images_of(context)
        start = begin(context.recipe, images)
        write_network(context, start.net, start.architecture)
        return {}

    def export(context: Context) -> Metrics:
        onnx.save(onnx.parser.parse_model(FILE), context.out / FLOAT)
        return {}

    runner = Runner(SMALL, tmp_path_factory.mktemp("runs"))
    runner.stages["finetune"] = Stage("finetune", ("data",), {}, finetune)
    runner.stages["export"] = Stage("export", ("finetune",), {}, export)
    config = {"recipe": SMALL.model_dump(mode="json")}
    runner.stages["report"] = Stage("report", ("export",), config, lambda context: {})
    for name in ("data", "finetune", "export", "report"):
        runner.build(name)
    return runner.store.publish("small", runner.made)


def test_the_lines_that_are_named_are_run_and_written(
    bench: ModuleType,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.md"
    results.write_text("before\n<!-- attacks: begin -->\nold\n<!-- attacks: end -->\nafter\n")
    monkeypatch.setattr(sys.modules["sections"], "RESULTS", results)
    names = ["torchattacks:PGD", "pyautoattack:standard-engine"]
    efforts = ["--images", "20", "--rounds", "1", "--steps", "2", "--queries", "3"]
    start(bench, monkeypatch, "--run", run, *efforts, "--parts", *names)
    begin, *lines, how, end = results.read_text().removeprefix("before\n").splitlines()[:-1]
    assert (begin, end) == ("<!-- attacks: begin -->", "<!-- attacks: end -->")
    assert [":".join(cells(line)[:2]) for line in lines[2:-1]] == names
    for words in ("small: 20 images", "eps 0.03", "2 steps, 3 queries", "1 rounds", "load average"):
        assert words in how
    assert "\n".join([*lines, how]) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--run", "nowhere"], 66, r"attacks: nowhere: not a finished run; .*\n"),
        (["--parts", "torchattacks:PGD", "PGD"], 2, r"(?s)usage: .*invalid choice: 'PGD' .*"),
    ],
)
def test_what_is_not_there_is_refused(
    bench: ModuleType,
    words: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as refusal:
        start(bench, monkeypatch, *words)
    assert refusal.value.code == code
    assert re.fullmatch(message, capsys.readouterr().err)
