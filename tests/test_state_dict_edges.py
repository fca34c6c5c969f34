"""Weights that nearly fit: other names altogether, a limit's last byte, one wrapper of several."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from test_state_dict import PLAIN, Malicious, build, inner, refusal, saved
from torch import nn

from advprune.errors import BadData, Incompatible
from advprune.models import checkpoint, state_dict
from advprune.models.state_dict import load_state_dict


def test_names_that_have_nothing_in_common_are_told_apart(tmp_path: Path) -> None:
    """No network inside, so nothing to put before them."""
    path = saved({"kernel": torch.zeros(2, 3)}, tmp_path / "net.pt")
    said = r"weight float32 \(2, 3\) is missing; bias .* is missing; kernel .* is unknown"
    with refusal(Incompatible, said):
        load_state_dict(nn.Linear(3, 2), path)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_prefix_is_taken_off_where_every_name_has_it(tmp_path: Path, prefix: str) -> None:
    path = saved(
        {"module.weight": torch.ones(2, 3), f"{prefix}bias": torch.ones(2)}, tmp_path / "n.pt"
    )
    net = nn.Linear(3, 2)
    if prefix:
        load_state_dict(net, path)
        assert net.bias.tolist() == [1, 1]
    else:
        with refusal(Incompatible, r"weight .* is missing; module\.weight .* is unknown"):
            load_state_dict(net, path)


def test_a_file_of_the_largest_size_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(inner(), tmp_path / "net.pt")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    assert unpacked < size
    monkeypatch.setattr(state_dict, "LARGEST_FILE", size)
    load_state_dict(build(), path)
    monkeypatch.setattr(state_dict, "LARGEST_FILE", size - 1)
    with refusal(BadData, f"{size} bytes are more than {size - 1}"):
        load_state_dict(build(), path)


def test_an_archive_that_unpacks_to_the_largest_size_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(6000))
        archive.writestr("net/data/1", bytes(4000))
    monkeypatch.setattr(state_dict, "LARGEST_FILE", 9_999)
    with refusal(BadData, "unpacks to 10000 bytes, more than 9999; do not use it"):
        load_state_dict(build(), path)
    monkeypatch.setattr(state_dict, "LARGEST_FILE", 10_000)
    with refusal(BadData, "not a PyTorch checkpoint"):
        load_state_dict(build(), path)


def test_what_a_file_holds_is_told_in_a_few_words(tmp_path: Path) -> None:
    path = saved({f"epoch{i}": i for i in range(9)}, tmp_path / "net.pt")
    held = ", ".join(f"'epoch{i}'" for i in range(5))
    with refusal(BadData, f"it holds {held}$"):
        load_state_dict(build(), path)


def test_a_reason_of_torch_is_cut_to_a_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BadData, match=r"not a PyTorch checkpoint") as caught:
        load_state_dict(build(), path)
    reason = re.search(r"checkpoint \((.*)\); fetch it again$", str(caught.value))
    assert reason and 20 < len(reason[1]) <= 200


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("kind", ["meta", "quantized", "sparse"])
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, kind: str) -> None:
    plain = torch.eye(3)
    made = {
        "meta": lambda: torch.empty(3, 3, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "sparse": lambda: plain.to_sparse_csr(),
    }[kind]()
    with pytest.raises(BadData, match="weight is no plain tensor; save dense weights"):
        state_dict._check_memory("weight", made, tmp_path / "net.pt")


def test_a_part_of_larger_storage_is_loaded(tmp_path: Path) -> None:
    """As of weights that were cut out of others: more is held than is needed."""
    path = saved(
        {"weight": torch.arange(12.0)[3:9].view(2, 3), "bias": torch.ones(2)}, tmp_path / "n.pt"
    )
    net = nn.Linear(3, 2)
    load_state_dict(net, path)
    assert net.weight.tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS:UserWarning")
def test_no_variable_of_the_environment_lets_a_pickle_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one turns what torch does by default into running whatever the file says."""
    victim = tmp_path / "victim"
    path = saved({"state_dict": inner(), "extra": Malicious(victim)}, tmp_path / "net.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with refusal(BadData, r"names \w+\.mkdir, and reading that could run code"):
        load_state_dict(build(), path)
    assert not victim.exists()
    torch.load(path)
    assert victim.exists(), "the test itself would notice nothing"


def test_an_architecture_is_written_in_one_way(tmp_path: Path) -> None:
    checkpoint.save(build(), PLAIN, tmp_path)
    text = (tmp_path / checkpoint.ARCHITECTURE).read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
