"""Bad models under `advprune attack`, and networks that a run cannot prune, are named at once."""

import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
from bad_input import Bad, refused
from onnx import TensorProto, helper
from tiny_run import advprune
from torch import Tensor

from advprune.models import Architecture, build
from advprune.models.checkpoint import save

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")

ARCH = Architecture("digits_resnet", 10, (1, 8, 8), (0.0,), (1.0,))
FEW = ("--limit-test", "30")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> State:
    return dict(build(ARCH, seed=0).state_dict())


def changed(state: State, name: str, value: object) -> State:
    return {key: tensor for key, tensor in (state | {name: value}).items() if tensor is not None}  # pyright: ignore


CONV, LOGITS = "network.conv1.weight", "network.linear.bias"
CHECKPOINTS: dict[str, tuple[Callable[[State], object], int, tuple[str, ...]]] = {
    "of another network": (
        lambda _: build(Architecture("lenet5_caffe", 10, (1, 28, 28), (0.0,), (1.0,))).state_dict(),
        78,
        ("weights of another network", "is missing"),
    ),
    "with another number of classes": (
        lambda s: changed(s, LOGITS, torch.zeros(9)),
        78,
        (f"{LOGITS} is float32 (9,), must be float32 (10,)",),
    ),
    "without a weight": (lambda s: changed(s, CONV, None), 78, (f"{CONV} float32",)),
    "with one too many": (
        lambda s: changed(s, "mask", torch.ones(2)),
        78,
        ("mask float32 (2,) is",),
    ),
    "with NaN": (
        lambda s: changed(s, LOGITS, torch.full((10,), torch.nan)),
        65,
        (f"{LOGITS} holds 10 NaN",),
    ),
    "with infinity": (
        lambda s: changed(s, LOGITS, torch.full((10,), -torch.inf)),
        65,
        (f"{LOGITS} holds 10 NaN",),
    ),
    "in float16": (
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
        78,
        ("is float16", "must be float32", "--cast"),
    ),
    "that is a list": (lambda s: list(s.values()), 65, ("holds a list",)),
    "that is empty": (lambda _: {}, 65, ("no state dict",)),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint(name: str, weights: State, tmp_path: Path) -> None:
    change, code, says = CHECKPOINTS[name]
    torch.save(change(weights), tmp_path / "net.pt")
    words = ("attack", tmp_path / "net.pt", "--arch", ARCH.model, *FEW)
    message = refused(*words, code=code, says=says)
    assert sum(message.count(word) for word in (" is missing", " is unknown", " must be")) <= 5


def test_half_precision_is_taken_when_asked_for(weights: State, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    safetensors.torch.save_file(half, tmp_path / "net.safetensors")
    words = ("attack", tmp_path / "net.safetensors", "--arch", ARCH.model, *FEW, "--attack", "fgsm")
    refused(*words, code=78, says=("--cast",))
    assert advprune(*words, "--cast", "--json").code == 0


FILES: dict[str, tuple[bytes | None, int, str]] = {
    "junk.pt": (b"junk", 65, "not a PyTorch checkpoint"),
    "empty.pt": (b"", 65, "not a PyTorch checkpoint"),
    "junk.safetensors": (b"junk", 65, "not a safetensors file"),
    "bomb.safetensors": (b"\xff" * 8 + b"{", 65, "not a safetensors file"),
    "junk.onnx": (b"junk", 65, "not an ONNX file"),
    "empty.onnx": (b"", 65, "empty.onnx"),
    "gone.pt": (None, 66, "cannot be read"),
    "gone.onnx": (None, 66, "no such file"),
    "junk.h5": (b"junk", 2, "is not a model; give FILE.onnx"),
    "junk": (b"junk", 2, "is not a model; give FILE.onnx"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model(name: str, tmp_path: Path) -> None:
    content, code, says = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused("attack", tmp_path / name, "--arch", ARCH.model, *FEW, code=code, says=(says,))


def graph(shape: tuple[int | str, ...], path: Path, weight: float = 0.1) -> Path:
    """Ten logits from images of this shape."""
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 10))
    kernel = helper.make_tensor(
        "w", TensorProto.FLOAT, (10, 1, 1, 1), [weight * i for i in range(10)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalMaxPool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    body = helper.make_graph(nodes, "net", [entry], [result], [kernel])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("shape", [("N", 1, "H", "W"), ("N", "C", 8, 8), ("N", 1, 8, "W")])
def test_a_graph_whose_images_have_no_size(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    message = refused("attack", graph(shape, tmp_path / "net.onnx"), *FEW, code=65)
    assert "net.onnx: takes " in message


def test_a_graph_for_other_images(tmp_path: Path) -> None:
    path = graph(("N", 1, 16, 16), tmp_path / "net.onnx")
    refused("attack", path, *FEW, code=78, says=("takes images (1, 16, 16)", "(1, 8, 8)"))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_graph_with_weights_that_are_no_numbers(weight: float, tmp_path: Path) -> None:
    path = graph(("N", 1, 8, 8), tmp_path / "net.onnx", weight)
    refused("attack", path, *FEW, code=65, says=("net.onnx", "not finite"))


FACTORIES = """
import sys
from torch import nn

def small(num_classes): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
def gone(num_classes): sys.exit(0)
def broken(num_classes): raise RuntimeError("two\\nlines")
def nothing(num_classes): return None
three = 3
"""
MODELS = [
    Bad("mine:small", 78, ("cannot take images of shape (1, 8, 8)",)),
    Bad("mine:gone", 78, ("failed: SystemExit: 0",)),
    Bad("mine:broken", 78, ("failed: RuntimeError: two lines",)),
    Bad("mine:nothing", 2, ("must return a torch.nn.Module, returned NoneType",)),
    Bad("mine:three", 2, ("'three' is not callable",)),
    Bad("mine:absent", 66, ("has no 'absent'",)),
    Bad("mine:", 66, ("has no ''",)),
    Bad(":small", 66, ("cannot import ''",)),
    Bad("quits:net", 66, ("cannot import 'quits': SystemExit",)),
    Bad("sys:exit", 78, ("failed: SystemExit",)),
    Bad("os:getcwd", 2, ("returned str",)),
    Bad("..:net", 66, ("cannot import '..'",)),
    Bad("torchvision:resnet19", 2, ("did you mean torchvision:resnet18",)),
]


@pytest.mark.parametrize("bad", MODELS, ids=str)
def test_a_factory_that_makes_no_network(
    bad: Bad, empty_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (empty_folder / "mine.py").write_text(FACTORIES)
    (empty_folder / "quits.py").write_text("raise SystemExit(0)\n")
    # In the run the images come first; they are good, and stay for the next attempt.
    (tmp_path / "runs").mkdir()
    words = ("--model", bad.words, "--runs", tmp_path / "runs")
    refused("run", *words, code=bad.code, says=bad.says)
    left = {path.name.split("-")[0] for path in (tmp_path / "runs").glob("store/*")}
    assert left <= {"data"}
    if not bad.words.startswith("torchvision:"):
        refused("attack", bad.words, *FEW, code=bad.code, says=bad.says)


BUDGETS = [
    Bad("--sparsity 0.99999", 65, ("cannot serve", "lower the sparsity")),
    Bad("--compression 1e9", 2, ("--compression 1e+09", "use at most")),
    Bad(
        "--method magnitude --granularity filter --sparsity 0.95", 65, ("would keep", "least width")
    ),
    Bad("--method harp --granularity channel --sparsity 0.99", 65, ("least width",)),
    Bad("--method radmm --granularity column --sparsity 0.999", 65, ("cannot serve",)),
    Bad("--method magnitude --granularity 2:4 --sparsity 0.9", 2, ("give --sparsity 0.5",)),
]


@pytest.mark.parametrize("bad", BUDGETS, ids=str)
def test_a_budget_that_leaves_a_layer_nothing(bad: Bad, tmp_path: Path) -> None:
    """Before anything is trained, though what is cut is known only after it."""
    refused("run", *bad.words.split(), "--runs", tmp_path / "runs", code=bad.code, says=bad.says)
    refused("plan", *bad.words.split(), code=bad.code, says=bad.says)


def test_no_attack_at_all_is_called_clean_accuracy(tmp_path: Path) -> None:
    save(build(ARCH, seed=0), ARCH, tmp_path / "net")
    words = ("attack", tmp_path / "net", "--eps", "-0", "--attack", "fgsm", *FEW)
    result = advprune(*words)
    assert result.code == 0, result
    assert "30 images, linf eps 0: clean accuracy" in result.out
    verdicts = advprune(*words, "--json").json["verdicts"]
    assert verdicts["fgsm"] == verdicts["worst"] == verdicts["clean"]


@pytest.mark.slow
def test_no_attack_at_all_is_a_sound_evaluation(tmp_path: Path) -> None:
    """The whole chain is walked with eps 0 (H2); checks that need a ball have nothing to say."""
    save(build(ARCH, seed=0), ARCH, tmp_path / "net")
    words = ["attack", tmp_path / "net", "--eps", "0", "--suite", "quick", "--limit-test", "20"]
    counts = {"images": 20, "health": 10, "steps": 2, "queries": 5, "fmn": 2}
    words += [word for key, n in counts.items() for word in ("--set", f"verify.{key}={n}")]
    result = advprune(*words, "--json")
    assert result.code == 0, result
    status = {check["id"]: check["status"] for check in result.json["health"]}
    assert status["H2"] == "OK"
    assert not {"H19", "H22"} & status.keys()
