"""Channels that are removed make every file that ships smaller, and what it does stays measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from tiny_run import TINY, Tiny, advprune

from advprune.models.checkpoint import load, load_architecture
from advprune.stats import macs, parameter_count
from export import graph
from export.patterns import has_two_in_four

pytest_plugins = ["tiny_fixtures"]


def run(root: Path, *words: str) -> dict[str, Path]:
    result = advprune("run", "--runs", root, *TINY, *words)
    assert result.code in (0, 10, 11), result.err
    folder = (root / "latest").resolve()
    return {path.name.split("_", 1)[1]: path for path in folder.glob("[0-9][0-9]_*")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def harp(runs: Path) -> dict[str, Path]:
    return run(runs, "--method", "harp", "--sparsity", "0.75", "--granularity", "channel")


def report(stages: dict[str, Path]) -> dict[str, Any]:
    return json.loads((stages["report"] / "report.json").read_text())


def test_the_network_is_physically_smaller_from_fine_tuning_on(harp: dict[str, Path]) -> None:
    dense, small = load(harp["adversarial"]), load(harp["finetune"])
    structure = json.loads((harp["finetune"] / "structure.json").read_text())
    shape = load_architecture(harp["finetune"]).shape
    assert structure["parameters"] == [parameter_count(dense), parameter_count(small)]
    assert structure["macs"] == [macs(dense, shape), macs(small, shape)]
    assert structure["parameters"][1] < 0.1 * structure["parameters"][0]
    assert structure["logit_gap"] < 1e-4
    for group in structure["groups"]:
        layer = small.get_submodule(group["name"].removesuffix(".weight"))
        assert layer.out_channels == group["after"]
        assert group["after"] % 8 == 0


def test_bench_holds_what_ships_against_the_dense_network(harp: dict[str, Path]) -> None:
    found = advprune("bench", harp["verify"].parent, "--json").json
    assert list(found) == ["fp32", "int8", "dense fp32"]
    assert found["dense fp32"]["bytes"] > 4 * found["fp32"]["bytes"]
    assert found["dense fp32"]["operators"]["Conv"] == found["int8"]["operators"]["QLinearConv"]
    # The dense network was trained on the way and never attacked as a file.
    assert found["dense fp32"]["worst"] is None
    assert found["fp32"]["worst"] is not None and found["int8"]["clean"] is not None


def test_what_ships_has_the_small_network_s_weights(harp: dict[str, Path]) -> None:
    small = load(harp["finetune"])
    sizes = sorted(p.numel() for p in small.parameters() if p.dim() > 1)
    for name in ("model.onnx", "model.int8.onnx", "model.int8.x86.onnx"):
        model = graph.load(harp["export"] / name)
        shapes = [numpy_helper.to_array(t).shape for t in model.graph.initializer]
        assert sorted(int(np.prod(s)) for s in shapes if np.prod(s) > 1 < len(s)) == sizes, name


def test_the_report_shows_what_became_of_it(harp: dict[str, Path]) -> None:
    content = report(harp)
    structure = content["structure"]
    assert structure["dense"]["p50_ms"] > 0
    latent = structure["latent"]
    before, after = structure["parameters"]
    assert latent["left"]["memory"] == pytest.approx(after / before)
    channels = [sum(group[key] for group in structure["groups"]) for key in ("before", "after")]
    assert latent["left"]["unit_sparsity"] == pytest.approx(1 - channels[1] / channels[0])
    for network in ("dense", "cut"):
        # Images crafted on the network itself break more of it than those of the other one.
        assert latent[network]["white"]["accuracy"] <= latent[network]["black"]["accuracy"]
        assert latent[network]["white"]["vulnerability"] > 0
    assert [engine["name"] for engine in content["engines"]] == ["fp32", "int8"]
    assert "75 % of channels removed" in content["title"]
    assert not any("zeros scattered" in note for note in content["caveats"])
    page = (harp["report"] / "report.html").read_text()
    assert '<h2 id="structure">' in page
    assert "as fast as dense fp32" in page


def test_scattered_zeros_have_no_structure_to_show(tiny: Tiny) -> None:
    assert not (tiny.artefact("finetune") / "structure.json").exists()
    assert tiny.report["structure"] is None
    assert any("zeros scattered" in note for note in tiny.report["caveats"])


@pytest.mark.slow
def test_two_in_four_survives_to_the_exported_file(runs: Path) -> None:
    words = ("--method", "magnitude", "--sparsity", "0.5", "--granularity", "2:4")
    stages = run(runs, *words, "--set", "quantize.how=qat")
    for name in ("model.onnx", "model.int8.onnx"):
        assert has_two_in_four(stages["export"] / name)
    assert report(stages)["structure"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sparsity", "0.99", "--granularity", "filter"), "8 is its least width; lower --spars"),
        (("--sparsity", "0.9", "--granularity", "2:4"), "removes two weights of four"),
        (("--sparsity", "0.5", "--granularity", "rows"), "input should be 'weight', 'filter'"),
        (("--compression", "4", "--granularity", "channel"), "--compression 4 counts parameters"),
        (("--sparsity", "0.5", "--granularity", "filter", "--round-to", "0"), "options.round_to 0"),
    ],
)
def test_nonsense_is_one_line(runs: Path, words: tuple[str, ...], message: str) -> None:
    result = advprune("run", "--runs", runs, *TINY, "--method", "magnitude", *words)
    assert result.code in (2, 65)
    assert message in result.err.replace("\n", " ")
    assert len(result.err.strip().splitlines()[-1]) < 300
    assert "Traceback" not in result.err
