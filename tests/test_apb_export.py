"""A run becomes a file that the benchmark's base definitions load strictly, or is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from apb_files import CASES, CIFAR10, image_set
from oracles import apb_networks as oracle
from tiny_run import Tiny, advprune, refusal

from advprune.models import Architecture, build, checkpoint
from advprune.models.benchmark import open_state
from pipeline.recipe import Recipe
from pipeline.stage import Artifact, Context
from pipeline.watch import Silent

pytest_plugins = ("tiny_fixtures",)

PLAIN = ((0.0,) * 3, (1.0,) * 3)
Finished = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """As much of a finished run as is exported: the fine-tuned network, and what it was told."""

    def make(architecture: Architecture, method: str = "harp", classes: tuple = CIFAR10) -> Path:
        folder = tmp_path / "run" / "05_finetune"
        net = build(architecture)
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
        checkpoint.save(net, architecture, folder)
        digests = {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in folder.iterdir()
        }
        manifest = {"files": digests, "metrics": {"sparsity": 0.9}}
        recipe = Recipe(method=method, model=architecture.model)
        inputs = {"finetune": Artifact(folder, manifest)}
        context = Context(recipe, inputs, tmp_path / "run", Silent())
        images = image_set(architecture.shape, classes)
        monkeypatch.setattr("pipeline.commands.apb.context_of", lambda _: context)
        monkeypatch.setattr("pipeline.commands.apb.images_of", lambda _: images)
        return tmp_path / "run"

    return make


def arch(model: str, statistics: tuple = PLAIN, **more: dict) -> Architecture:
    return Architecture(model, 10, (3, 32, 32), *statistics, **more)


@pytest.mark.parametrize(
    ("model", "network", "statistics"),
    [("resnet18", "R18", PLAIN), ("vgg16_bn_fc3", "V16", oracle.CIFAR10)],
)
def test_the_file_is_what_the_base_definition_loads_and_comes_back_to_the_bit(
    finished: Finished, tmp_path: Path, model: str, network: str, statistics: tuple
) -> None:
    run, out = finished(arch(model, statistics)), tmp_path / "out"
    document = advprune("apb", "export", run, "--out", out, "--json").json
    key = f"HARP_Zhao2023Holistic_{network}_CIFAR10_US_90"
    assert document["model_key"] == key
    assert sorted(path.name for path in out.iterdir()) == [
        f"{key}.json",
        f"{key}.pt",
        f"{key}.safetensors",
    ]
    case, shown = CASES["base", network], json.loads((out / f"{key}.json").read_text())
    assert shown["taxonomy"]["ap_key"] == "HARP_Zhao2023Holistic"
    assert (shown["mean"], shown["std"]) == ([*statistics[0]], [*statistics[1]])
    for name, digest in shown["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    tensors = safetensors.torch.load_file(out / f"{key}.safetensors")
    pickled = torch.load(out / f"{key}.pt", weights_only=True)
    assert list(pickled) == ["state_dict"]
    assert {name: tuple(value.shape) for name, value in tensors.items()} == case.shapes
    assert pickled["state_dict"].keys() == tensors.keys()
    ours = checkpoint.load(run / "05_finetune").eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    seen = (x - torch.tensor(statistics[0]).view(1, 3, 1, 1)) / torch.tensor(statistics[1]).view(
        1, 3, 1, 1
    )
    with torch.no_grad():
        torch.testing.assert_close(case.answer(tensors, seen), ours(x), rtol=1e-4, atol=1e-4)
        for state in (tensors, pickled["state_dict"]):
            back = open_state(state, out, "HARP", statistics).net.eval()
            assert torch.equal(back(x), ours(x))


def test_what_stands_before_the_first_layer_is_said(finished: Finished, tmp_path: Path) -> None:
    plain = advprune("apb", "export", finished(arch("resnet18")), "--out", tmp_path / "a")
    assert plain.code == 0 and "note:" not in plain.out
    run = finished(arch("resnet18", oracle.CIFAR10), "gap")
    told = advprune("apb", "export", run, "--out", tmp_path / "b")
    assert "GAP_Weiss2022Hardening_R18_CIFAR10_US_90" in told.out
    assert "note: its base networks see pixels as they are" in told.out


def test_what_is_none_of_its_networks_is_refused_and_nothing_is_written(
    finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(*given: object) -> str:
        return refusal(advprune("apb", "export", finished(*given), "--out", out), 78)

    assert "model vgg16_bn: none of the benchmark's base networks; use resnet18 (R18) or" in (
        refused(arch("vgg16_bn"))
    )
    cut = arch("resnet18", widths={"network.blocks.0.conv1": (32, 64)})
    wide = {"network.blocks.0.bn1": (32, 32), "network.blocks.0.conv2": (64, 32)}
    cut = arch("resnet18", widths={**cut.widths, **wide})
    assert "3 layers have lost channels" in refused(cut)
    small = Architecture("resnet18", 3, (3, 16, 16), *PLAIN)
    assert "for images (3, 16, 16) of 3 classes" in refused(small)
    strange = tuple("abcdefghij")
    assert "the benchmark has CIFAR10 and SVHN" in refused(arch("resnet18"), "harp", strange)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    out.mkdir()
    taken = advprune("apb", "export", finished(arch("resnet18")), "--out", out)
    assert "exists already" in refusal(taken, 73)


def test_a_run_of_another_network_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    given = advprune("apb", "export", tiny.run, "--out", tmp_path / "out")
    assert "model digits_resnet: none of the benchmark's base networks" in refusal(given, 78)
