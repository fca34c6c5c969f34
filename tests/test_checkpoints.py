"""A checkpoint comes back bit for bit, or is refused before the network is touched."""

import errno
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrize

from advprune import models
from advprune.errors import BadData, CannotCreate, Incompatible, NotFound, StorageFailed
from advprune.models import Architecture, checkpoint

SMALL = Architecture("digits_resnet", 10, (1, 8, 8), (0.4,), (0.2,))
OTHER = Architecture("resnet20", 10, (3, 32, 32), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def test_an_architecture_survives_json() -> None:
    assert Architecture.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("model", 3),
        ("classes", 1),
        ("classes", True),
        ("classes", 10.0),
        ("classes", 10**12),
        ("shape", [8, 8]),
        ("shape", [1, 0, 8]),
        ("shape", "188"),
        ("shape", [1, 8, 10**9]),
        ("mean", [0.5, 0.5]),
        ("mean", [float("nan")]),
        ("mean", [123.7]),
        ("mean", 0.5),
        ("std", [0.0]),
        ("std", [float("inf")]),
        ("std", ["0.2"]),
    ],
)
def test_an_impossible_architecture_is_refused(field: str, value: object) -> None:
    with pytest.raises(BadData, match=f"architecture: {field} must be"):
        Architecture.from_dict({**SMALL.to_dict(), field: value})


def test_missing_and_unknown_fields_are_refused() -> None:
    values = SMALL.to_dict()
    values["stdev"] = values.pop("std")
    with pytest.raises(BadData, match=r"missing \['std'\], fields unknown \['stdev'\]"):
        Architecture.from_dict(values)
    with pytest.raises(BadData, match="must be an object"):
        Architecture.from_dict([])  # pyright: ignore[reportArgumentType]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoint"
    checkpoint.save(models.build(SMALL, seed=5), SMALL, folder)
    return folder


def rewrite(folder: Path, **changed: torch.Tensor | None) -> None:
    """Change tensors of the weights file; None removes one. `__` stands for a dot."""
    path = folder / checkpoint.WEIGHTS
    state = safetensors.torch.load_file(path)
    for name, value in changed.items():
        state.pop(name.replace("__", "."), None)
        if value is not None:
            state[name.replace("__", ".")] = value
    safetensors.torch.save_file(state, path)


def test_a_checkpoint_comes_back_bit_for_bit(folder: Path) -> None:
    net = models.build(SMALL, seed=5)
    back = checkpoint.load(folder)
    assert list(back.state_dict()) == list(net.state_dict())
    for key, value in net.state_dict().items():
        assert back.state_dict()[key].dtype == value.dtype
        assert torch.equal(back.state_dict()[key], value), key
    assert checkpoint.load_architecture(folder) == SMALL
    assert sorted(p.name for p in folder.iterdir()) == ["architecture.json", "weights.safetensors"]
    assert set(safetensors.torch.load_file(folder / checkpoint.WEIGHTS)) == set(net.state_dict())


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    checkpoint.save(models.build(SMALL, seed=5), SMALL, tmp_path / "again")
    for file in (checkpoint.WEIGHTS, checkpoint.ARCHITECTURE):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_tied_weights_survive(tmp_path: Path) -> None:
    net = models.build(SMALL)
    norm = net.get_submodule("network.bn1")
    norm.bias = norm.weight
    checkpoint.save(net, SMALL, tmp_path)
    assert checkpoint.load(tmp_path).state_dict()["network.bn1.bias"].tolist() == [1.0] * 32


def test_a_masked_network_is_not_saved(tmp_path: Path) -> None:
    net = models.build(SMALL)
    parametrize.register_parametrization(net.get_submodule("network.conv1"), "weight", Doubled())
    with pytest.raises(Incompatible, match=r"network\.conv1\.parametrizations.*bake"):
        checkpoint.save(net, SMALL, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreate, match=r"cannot write .*file: File exists"):
        checkpoint.save(models.build(SMALL), SMALL, tmp_path / "file")


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as a folder that cannot be made, and with how much room there must be."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = r"No space left on device\); [0-9,]{7,} bytes are needed, [0-9,]+ bytes are free"
    with pytest.raises(StorageFailed, match=words):
        checkpoint.save(models.build(SMALL), SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["network__linear__bias", "network__bn1__running_var"])
def test_weights_that_are_not_finite_are_refused(folder: Path, name: str, value: float) -> None:
    size = 10 if "linear" in name else 32
    rewrite(folder, **{name: torch.ones(size).index_fill(0, torch.tensor([3]), value)})
    with pytest.raises(BadData, match=f"{name.replace('__', '.')} holds 1 NaN or infinite"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(10, dtype=torch.float16), r"is float16 \(10,\), must be float32 \(10,\)"),
        (torch.zeros(9), r"is float32 \(9,\), must be float32 \(10,\)"),
        (None, r"float32 \(10,\) is missing"),
    ],
)
def test_other_dtypes_shapes_and_names_are_refused(
    folder: Path, value: torch.Tensor | None, words: str
) -> None:
    rewrite(folder, network__linear__bias=value)
    with pytest.raises(Incompatible, match=rf"1 differences: network\.linear\.bias {words}"):
        checkpoint.load(folder)


def test_an_unknown_weight_is_refused(folder: Path) -> None:
    rewrite(folder, network__extra=torch.zeros(2))
    with pytest.raises(Incompatible, match=r"network\.extra float32 \(2,\) is unknown"):
        checkpoint.load(folder)


def test_weights_of_another_architecture_are_refused_and_the_network_stays(folder: Path) -> None:
    net = models.build(OTHER)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(Incompatible) as refusal:
        checkpoint.load_into(net, folder / checkpoint.WEIGHTS)
    message = str(refusal.value)
    assert "\n" not in message
    assert "network.conv1.weight is float32 (32, 1, 3, 3), must be float32 (16, 3, 3, 3)" in message
    assert sum(message.count(word) for word in ("is missing", "is unknown", "must be")) == 5
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_truncated_and_foreign_files_are_refused(folder: Path) -> None:
    path = folder / checkpoint.WEIGHTS
    whole = path.read_bytes()
    net = models.build(SMALL)
    for broken in (b"", whole[:7], whole[:500], whole[:-1], whole + b"\0", b"PK\x03\x04" * 99):
        path.write_bytes(broken)
        with pytest.raises(BadData, match="not a safetensors file"):
            checkpoint.load_into(net, path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\xfa", b"[]", b'{"model": "resnet18"}'])
def test_a_broken_architecture_file_is_refused(folder: Path, text: bytes) -> None:
    (folder / checkpoint.ARCHITECTURE).write_bytes(text)
    with pytest.raises(BadData, match=r"architecture\.json: .*write the checkpoint again"):
        checkpoint.load(folder)


@pytest.mark.parametrize("file", [checkpoint.WEIGHTS, checkpoint.ARCHITECTURE])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(NotFound, match=file):
        checkpoint.load(folder)


def test_an_architecture_nested_too_deep_to_be_read_is_refused(folder: Path) -> None:
    (folder / checkpoint.ARCHITECTURE).write_text("[" * 100_000)
    with pytest.raises(BadData, match="not JSON: maximum recursion depth"):
        checkpoint.load(folder)
