"""Files of the benchmark become networks of ours that answer the same, or are refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from apb_files import CASES, Case, image_set, weights
from oracles import apb_networks as oracle
from tiny_run import Result, advprune, refusal
from torch import Tensor

from advprune.errors import BadData, Incompatible, Refused
from advprune.models import checkpoint
from advprune.models.benchmark import FORMS, forms_of, open_state
from advprune.models.state_dict import read_state_dict
from pipeline.target import open_target

EVERY = pytest.mark.parametrize(
    ("method", "network", "case"), [(*key, case) for key, case in CASES.items()]
)
HERE = Path("x.pt")


def pixels(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def statistics(method: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    return oracle.CIFAR10 if method == "MAD" else None


def take(path: Path, out: Path, *words: str, digest: bool = True) -> Result:
    sha = ["--sha256", hashlib.sha256(path.read_bytes()).hexdigest()] if digest else []
    return advprune("apb", "import", path, "--out", out, *words, *sha)


@EVERY
def test_a_file_becomes_a_network_that_answers_the_same(
    method: str, network: str, case: Case
) -> None:
    state = weights(case.shapes)
    opened = open_state(state, HERE, method, statistics(method))
    assert (opened.network, opened.architecture.model) == (network, case.model)
    x = pixels()
    with torch.no_grad():
        ours, theirs = opened.net.eval()(x), case.answer(state, x)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@EVERY
def test_every_name_counts(method: str, network: str, case: Case) -> None:
    state = weights(case.shapes)
    for name in list(state)[:: max(1, len(state) // 3)]:
        less = {key: value for key, value in state.items() if key != name}
        with pytest.raises(Incompatible, match=rf"against {network}, 1 differences: {name} .*miss"):
            open_state(less, HERE, method, statistics(method))
    with pytest.raises(Incompatible, match=r"1 differences: conv1\.popup_scores .* is unknown"):
        open_state(state | {"conv1.popup_scores": torch.ones(2)}, HERE, method, statistics(method))


def test_all_methods_of_the_leaderboard_that_bring_a_network_are_known() -> None:
    assert {method for method, _ in CASES} <= set(FORMS)
    assert {"HARP", "HYDRA", "PwoA"} <= set(FORMS)
    assert forms_of("radmm") is FORMS["RADMM"]
    with pytest.raises(Refused, match="'RST' brings no network to the benchmark; use base, HARP"):
        forms_of("RST")


def test_a_masked_weight_is_zero_only_where_it_is_itself() -> None:
    state = weights(CASES["MAD", "R18"].shapes)
    floor = torch.tensor(1e-4).expm1().log()
    state["conv1.mask_weight"][:] = floor
    before = state["conv1.weight"].clone()
    net = open_state(state, HERE, "MAD", oracle.CIFAR10).net
    after = net.get_parameter("network.conv1.weight")
    assert torch.equal(after == 0, before == 0)
    torch.testing.assert_close(after.detach(), before * 1e-4, rtol=1e-3, atol=0)


def test_what_normalises_is_inside_given_or_refused() -> None:
    bird = weights(CASES["RobustBird", "R18"].shapes)
    assert open_state(bird, HERE, "RobustBird").architecture.mean == oracle.CIFAR10[0]
    other = ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(Refused, match="RobustBird: its networks normalise by themselves"):
        open_state(bird, HERE, "RobustBird", other)
    with pytest.raises(Refused, match=r"MAD: its networks are told .*give --mean and --std"):
        open_state(weights(CASES["MAD", "R18"].shapes), HERE, "MAD")
    base = weights(CASES["base", "R18"].shapes)
    assert open_state(base, HERE, "base").architecture.std == (1.0,) * 3
    assert open_state(base, HERE, "base", oracle.CIFAR10).architecture.std == oracle.CIFAR10[1]


def test_what_contradicts_itself_or_is_no_number_is_refused() -> None:
    doubled = weights(CASES["Li20", "V16"].shapes)
    doubled["model.0.0.weight"] = doubled["model.0.0.weight"] + 1
    with pytest.raises(BadData, match=r"feature\.0\.weight and model\.0\.0\.weight must be the"):
        open_state(doubled, HERE, "Li20")
    base = weights(CASES["base", "V16"].shapes)
    with pytest.raises(BadData, match="NaN"):
        open_state(base | {"classifier.4.bias": torch.full((10,), torch.nan)}, HERE, "base")
    with pytest.raises(Incompatible, match=r"classifier\.4\.bias is float16 \(10,\), must be fl"):
        open_state(base | {"classifier.4.bias": torch.zeros(10).half()}, HERE, "base")
    with pytest.raises(Incompatible, match=r"is float32 \(11, 256\), must be float32 \(10, 256\)"):
        open_state(base | {"classifier.4.weight": torch.zeros(11, 256)}, HERE, "base")


@pytest.mark.parametrize("wrapper", ["state_dict", "net", None])
def test_a_wrapped_file_becomes_a_checkpoint_of_ours(tmp_path: Path, wrapper: str | None) -> None:
    state = weights(CASES["base", "R18"].shapes)
    named = {f"module.{name}": value for name, value in state.items()} if wrapper else state
    path, out = tmp_path / "theirs.pt", tmp_path / "ours"
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, path)
    found = take(path, out, "--method", "hydra", "--json").json
    assert (found["model"], found["network"]) == ("resnet18", "R18")
    assert found["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert found["next"] == f"advprune attack {out} --data cifar10 --protocol apb"
    assert open_target(str(out), None, image_set((3, 32, 32)), "cpu").arch == "resnet18"
    ours = checkpoint.load(out).state_dict()
    assert torch.equal(ours["network.linear.weight"], state["linear.weight"])
    again, _ = read_state_dict(out / checkpoint.WEIGHTS)
    assert {"normalize.mean", "network.blocks.2.shortcut.conv.weight"} <= set(again)


class Runs:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple:
        return print, ("it ran",)


def test_hostile_files_are_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "theirs.pt", tmp_path / "ours"
    base = ("--method", "base")
    torch.save(weights(CASES["base", "V16"].shapes), path)
    message = refusal(take(path, out, *base, digest=False), 2)
    assert "a pickle; if you trust where it is from, say which it is: --sha256 " in message
    wrong = advprune("apb", "import", path, "--out", out, *base, "--sha256", "0" * 64)
    assert "not the one given" in refusal(wrong, 65)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a PyTorch checkpoint" in refusal(take(path, out, *base), 65)
    torch.save({"state_dict": Runs()}, path)
    assert "could run code" in refusal(take(path, out, *base), 65)
    assert "it ran" not in capsys.readouterr().out
    torch.save({"epoch": 3}, path)
    assert "no state dict" in refusal(take(path, out, *base), 65)
    torch.save({"conv1.weight": torch.ones(64, 3, 3, 3)}, path)
    assert "is missing" in refusal(take(path, out, *base), 78)
    gone = advprune("apb", "import", tmp_path / "gone.pt", "--out", out, *base)
    assert "cannot be read" in refusal(gone, 66)
    assert not out.exists() and sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--method", "nobody"), 2, "'nobody' brings no network"),
        (("--method", "MAD", "--mean", "0,0,0"), 2, "--mean and --std mean nothing without each"),
        (("--method", "MAD", "--mean", "0,0", "--std", "1,1,1"), 2, "--mean '0,0'"),
        (("--method", "MAD", "--mean", "0,0,0", "--std", "1,0,1"), 2, "--std '1,0,1'"),
        (("--method", "MAD", "--mean", "0,nan,0", "--std", "1,1,1"), 2, "--mean '0,nan,0'"),
    ],
)
def test_wrong_words_are_refused_first(
    tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    out = tmp_path / "ours"
    assert said in refusal(advprune("apb", "import", "gone.pt", "--out", out, *words), code)
    out.mkdir()
    taken = advprune("apb", "import", "gone.pt", "--out", out, "--method", "base")
    assert "exists already" in refusal(taken, 73)
