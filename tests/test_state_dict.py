"""Weights from elsewhere are loaded whole, or refused before the network is touched."""

import hashlib
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from advprune import models
from advprune.errors import BadData, Incompatible, NotFound, Refused
from advprune.models import Architecture, state_dict
from advprune.models.state_dict import Loaded, load_state_dict

# As the caller builds it for weights that were trained on pixels as they are.
PLAIN = Architecture("digits_resnet", 10, (1, 8, 8), (0.0,), (1.0,))
State = dict[str, Tensor]


def build(seed: int = 0) -> nn.Sequential:
    return models.build(PLAIN, seed=seed)


def inner(seed: int = 7) -> State:
    """What the authors of the inner network would have saved."""
    return OrderedDict(build(seed).get_submodule("network").state_dict())


def saved(content: object, path: Path, **settings: Any) -> Path:
    torch.save(content, path, **settings)
    return path


def refusal(kind: type[Refused], match: str):
    return pytest.raises(kind, match=match, check=lambda error: "\n" not in str(error))


def bare(state: State) -> object:
    return state


def wrapped(key: str) -> Callable[[State], object]:
    return lambda state: {"epoch": 3, key: state, "optimizer": {"lr": 0.1}, "arch": "resnet"}


def parallel(state: State) -> object:
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".tar", ".pth.tar"])
@pytest.mark.parametrize(
    ("wrap", "wrapper"),
    [
        (bare, None),
        (wrapped("state_dict"), "state_dict"),
        (wrapped("net"), "net"),
        (wrapped("model"), "model"),
        (parallel, "state_dict"),
    ],
)
def test_every_usual_form_is_loaded(
    wrap: Callable[[State], object], wrapper: str | None, suffix: str, tmp_path: Path
) -> None:
    path, net = saved(wrap(inner()), tmp_path / f"net{suffix}"), build()
    loaded = load_state_dict(net, path)
    assert loaded == Loaded(hashlib.sha256(path.read_bytes()).hexdigest(), wrapper)
    for name, value in build(7).state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_names_of_the_whole_network_old_files_and_safetensors_are_loaded(tmp_path: Path) -> None:
    whole = build(7).state_dict()
    whole["normalize.mean"] = torch.full((1, 1, 1, 1), 0.25)
    old = saved(whole, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(whole, tmp_path / "net.safetensors")
    safetensors.torch.save_file(inner(), tmp_path / "inner.safetensors")
    for path in (old, tmp_path / "net.safetensors", tmp_path / "inner.safetensors"):
        net = build()
        assert load_state_dict(net, path).wrapper is None
        mean = 0.0 if "inner" in path.name else 0.25
        assert net.get_buffer("normalize.mean").item() == mean
        assert torch.equal(net.state_dict()["network.conv1.weight"], whole["network.conv1.weight"])


def test_a_network_without_normalisation_and_parameters_are_loaded(tmp_path: Path) -> None:
    net, source = nn.Linear(3, 2), nn.Linear(3, 2)
    path = saved({"model": dict(source.named_parameters())}, tmp_path / "net.pt")
    load_state_dict(net, path)
    assert torch.equal(net.weight, source.weight)
    assert net.weight.requires_grad


def test_other_wrappers_can_be_named(tmp_path: Path) -> None:
    path = saved({"ema": inner(), "state_dict": inner(8)}, tmp_path / "net.pt")
    net = build()
    assert load_state_dict(net, path, wrappers=["ema"]).wrapper == "ema"
    assert torch.equal(net.state_dict()["network.conv1.weight"], inner()["conv1.weight"])
    both = saved({"net": inner(), "state_dict": inner(8)}, tmp_path / "both.pt")
    with refusal(BadData, "holds state_dict and net; say which"):
        load_state_dict(net, both)


# --- refusals: the network stays as it was ---


def masks(state: State) -> State:
    return state | {"conv1.mask": torch.ones(2, 2), "linear.popup_scores": torch.ones(3)}


def incomplete(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("running_var")}


def halved(state: State) -> State:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def misshapen(state: State) -> State:
    return state | {"linear.bias": torch.zeros(9)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            masks,
            r"2 differences: network\.conv1\.mask float32 \(2, 2\) is unknown; network\.l",
        ),
        (incomplete, r"differences: .*running_var float32 \(32,\) is missing"),
        (halved, r"network\.conv1\.weight is float16 .*, must be float32"),
        (misshapen, r"1 differences: network\.linear\.bias is float32 \(9,\), must be .*\(10,\)"),
    ],
)
def test_what_does_not_fit_is_named(
    change: Callable[[State], State], match: str, tmp_path: Path
) -> None:
    net = build()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for wrap in (bare, wrapped("net")):
        path = saved(wrap(change(inner())), tmp_path / "net.pt")
        with refusal(Incompatible, match) as caught:
            load_state_dict(net, path)
        message = str(caught.value)
        assert sum(message.count(word) for word in ("is missing", "is unknown", "must be")) <= 5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_taken_where_that_is_asked_for(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inner().items()}
    path, net = saved(state, tmp_path / "net.pt"), build()
    with refusal(Incompatible, "in another precision, .* --cast"):
        load_state_dict(net, path)
    load_state_dict(net, path, cast=True)
    for name, value in net.get_submodule("network").state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))
    # Only the precision is changed: counts stay counts, and what grows without bound is refused.
    counts = {k: v.float() if "num_batches" in k else v for k, v in state.items()}
    with refusal(Incompatible, "num_batches_tracked is float32 .*, must be int64"):
        load_state_dict(net, saved(counts, path), cast=True)


def test_a_weight_that_the_precision_does_not_hold_is_refused(tmp_path: Path) -> None:
    state = {k: v.double() if v.is_floating_point() else v for k, v in inner().items()}
    state["linear.bias"][0] = 1e300
    with refusal(BadData, "linear.bias holds 1 NaN or infinite"):
        load_state_dict(build(), saved(state, tmp_path / "net.pt"), cast=True)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = models.build(Architecture("lenet5_caffe", 10, (1, 28, 28), (0.0,), (1.0,)))
    with refusal(Incompatible, "weights of another network, .* differences"):
        load_state_dict(build(), saved(other.state_dict(), tmp_path / "net.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = inner()
    state["linear.bias"][2] = value
    with refusal(BadData, r"network\.linear\.bias holds 1 NaN or infinite values of 10"):
        load_state_dict(build(), saved(state, tmp_path / "net.pt"))


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused_and_none_of_it_runs(
    zipped: bool, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    content = {"state_dict": inner(), "extra": Malicious(victim)}
    path = saved(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with refusal(BadData, r"names \w+\.mkdir, and reading that could run code; convert .*safetens"):
        load_state_dict(build(), path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the test itself would notice nothing"


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    with refusal(BadData, "names torch.nn.modules.linear.Linear, and reading that could run code"):
        load_state_dict(build(), saved(nn.Linear(2, 2), tmp_path / "net.pt"))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_an_expanded_tensor_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bomb = torch.zeros(1).expand(10**6, 10**6)
    path = saved(inner() | {"conv1.weight": bomb}, tmp_path / "net.pt")
    assert path.stat().st_size < 2 * 10**6
    with refusal(BadData, r"conv1\.weight is 4000000000000 bytes large and holds 4"):
        load_state_dict(build(), path)
    # Also where it has the right shape.
    path = saved(inner() | {"linear.bias": torch.zeros(1).expand(10)}, tmp_path / "small.pt")
    with refusal(BadData, r"linear\.bias is 40 bytes large and holds 4"):
        load_state_dict(build(), path)
    sparse = saved({"weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    with refusal(BadData, "weight is no plain tensor"):
        load_state_dict(nn.Linear(3, 3), sparse)


def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(inner(), tmp_path / "net.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(10**7))
    monkeypatch.setattr(state_dict, "LARGEST_FILE", path.stat().st_size)
    load_state_dict(build(), path)
    assert packed.stat().st_size < path.stat().st_size < 10**7
    with refusal(BadData, r"unpacks to 10000000 bytes, more than"):
        load_state_dict(build(), packed)
    monkeypatch.setattr(state_dict, "LARGEST_FILE", 1000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with refusal(BadData, "bytes are more than 1000"):
        load_state_dict(build(), path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds a list; save a state dict"),
        (
            {"epoch": 3, "arch": "vgg"},
            "no state dict, .* under state_dict, net, model; it holds",
        ),
        ({}, "it holds nothing"),
        ({"state_dict": {"weight": 3}}, "it holds 'state_dict'"),
    ],
)
def test_files_without_a_state_dict_are_refused(
    content: object, match: str, tmp_path: Path
) -> None:
    with refusal(BadData, match):
        load_state_dict(build(), saved(content, tmp_path / "net.pt"))


def test_broken_missing_and_unknown_files_are_refused(tmp_path: Path) -> None:
    whole = saved(inner(), tmp_path / "net.pt").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"PK\x03\x04" * 99, b"not a checkpoint"):
        (tmp_path / "net.pt").write_bytes(broken)
        with refusal(BadData, r"net\.pt: not a PyTorch checkpoint \(.+\); fetch it again"):
            load_state_dict(build(), tmp_path / "net.pt")
    (tmp_path / "net.safetensors").write_bytes(whole)
    with refusal(BadData, "not a safetensors file"):
        load_state_dict(build(), tmp_path / "net.safetensors")
    (tmp_path / "net.npz").write_bytes(whole)
    with refusal(BadData, r"not a known kind; give \.safetensors"):
        load_state_dict(build(), tmp_path / "net.npz")
    with refusal(NotFound, "none.pt: cannot be read: No such file"):
        load_state_dict(build(), tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    with refusal(NotFound, "cannot be read: Is a directory"):
        load_state_dict(build(), tmp_path / "folder.pt")


def test_an_archive_that_only_torch_could_read_is_refused_unread(tmp_path: Path) -> None:
    """Its size once unpacked would be nobody's guess."""
    whole = saved(inner(), tmp_path / "net.pt").read_bytes()
    at = whole.rindex(b"data.pkl")
    (tmp_path / "net.pt").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with refusal(BadData, r"not a PyTorch checkpoint \('utf-8' codec can't decode"):
        load_state_dict(build(), tmp_path / "net.pt")
