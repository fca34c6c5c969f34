"""Any model can be attacked: by a suite, by attacks of one's choice, as the benchmark does."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from attack_nets import digits
from masked_nets import hardened
from scipy.stats import binomtest
from tiny_run import Result, advprune

from advprune.method import get
from advprune.models import Architecture, build
from advprune.models.checkpoint import save
from export.to_onnx import to_onnx
from pipeline import apb

COMMON = ("--eps", "0.1", "--limit-test", "60")
QUICK = ("--suite", "quick", "--set", "verify.steps=20", "--set", "verify.queries=40")
HARDENED = "masked_nets:hardened"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    to_onnx(hardened(), (1, 8, 8), path)
    return path


def attack(*words: str | Path) -> Result:
    return advprune("attack", *words)


def refused(result: Result, code: int) -> str:
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("advprune: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.mark.parametrize("kind", ["factory", "onnx"])
def test_a_suite_judges_and_checks_itself(kind: str, engine: Path, tmp_path: Path) -> None:
    target = HARDENED if kind == "factory" else engine
    out = tmp_path / "result.json"
    result = attack(target, *COMMON, *QUICK, "--out", out, "--json")
    assert result.code == 0
    found = result.json
    assert json.loads(out.read_text()) == found
    name = {"factory": "torch", "onnx": "onnx"}[kind]
    assert list(found["verdicts"]) == [
        *("clean", f"pgd-ce@{name}-twin", f"square@{name}", f"fmn@{name}-twin", "worst")
    ]
    rows = [flags for attack, flags in found["verdicts"].items() if attack != "worst"]
    assert found["verdicts"]["worst"] == [all(column) for column in zip(*rows, strict=True)]
    assert len(found["indices"]) == 60
    assert {check["id"] for check in found["health"]} >= {"H5", "H15", "H22", "H25"}
    assert found["threat"] == {"norm": "linf", "eps": 0.1, "low": 0.0, "high": 1.0}


def test_the_same_network_is_as_robust_exported_as_not(engine: Path) -> None:
    worst = [
        attack(target, *COMMON, *QUICK, "--json").json["verdicts"]["worst"]
        for target in (HARDENED, engine)
    ]
    assert np.mean(np.array(worst[0]) != np.array(worst[1])) <= 0.05
    assert 0 < sum(worst[0]) < 60


def test_an_evaluation_that_cannot_be_believed_ends_with_11() -> None:
    words = ("--eps", "0.1", "--limit-test", "60", *QUICK)
    result = attack("masked_nets:reversed_gradient", *words)
    assert result.code == 11
    assert "INVALID H19" in result.out


def test_attacks_of_ones_choice(engine: Path) -> None:
    words = [word for spec in SPECS for word in ("--attack", spec)]
    result = attack(engine, *COMMON, *words, "--trials", "2", "--json")
    assert result.code == 0
    verdicts = result.json["verdicts"]
    assert list(verdicts) == ["clean", *SPECS, "worst"]
    assert sum(verdicts["worst"]) <= min(sum(verdicts[spec]) for spec in SPECS)
    assert sum(verdicts["apgd:steps=10"]) < sum(verdicts["clean"])
    notes = " ".join(result.json["notes"])
    assert "the best of 2 settings on 143 validation images" in notes
    assert "give 1000 images" in notes


SPECS = ["apgd:steps=10", "torchattacks:PGD:steps=5", "square:queries=20", "ho_fmn"]


def test_the_euclidean_norm_has_its_own_eps(engine: Path) -> None:
    words = ("--norm", "l2", "--eps", "1.5", "--limit-test", "60")
    result = attack(engine, *words, "--attack", "apgd:steps=10", "--json")
    assert result.json["threat"] == {"norm": "l2", "eps": 1.5, "low": 0.0, "high": 1.0}
    verdicts = result.json["verdicts"]
    assert sum(verdicts["worst"]) < sum(verdicts["clean"])


def test_a_graph_without_gradients_is_asked_for_its_scores(engine: Path, tmp_path: Path) -> None:
    model = onnx.load(engine)
    last = model.graph.output[0].name
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Elu", ["before"], [last]))
    path = tmp_path / "elu.onnx"
    onnx.save(model, path)
    message = refused(attack(path, *COMMON), 2)
    assert "Elu" in message
    assert "--attack square" in message
    assert "has no gradient; use square" in refused(attack(path, *COMMON, "--attack", "pgd"), 2)
    shown = attack(path, *COMMON, "--attack", "square:queries=20")
    assert shown.code == 0
    assert "by its scores alone" in shown.out


def test_the_benchmarks_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a checkpoint of torch whose weights are half gone, in a file of the benchmark's kind."""
    monkeypatch.setattr(apb, "autoattack", partial(apb.autoattack, steps=5, queries=50))
    net = build(Architecture("digits_resnet", 10, (1, 8, 8), (0.0,), (1.0,)))
    inner = {
        f"module.{name.removeprefix('network.')}": value
        for name, value in net.state_dict().items()
        if name.startswith("network.")
    }
    for value in inner.values():
        if value.ndim == 4:
            value[: len(value) // 2] = 0
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": inner, "epoch": 3}, path)
    words = ("--arch", "digits_resnet", "--protocol", "apb", "--method", "hydra")
    result = attack(path, *words, "--limit-test", "12", "--attack", "fgsm", "--json")
    found = result.json["apb"]
    assert found["model_key"] == f"HYDRA_Sehwag2020Hydra_?_?_US_{round(100 * found['sparsity'])}"
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["eps"] == 0.031
    assert found["images"] == 12
    assert found["ho_fmn"] is None
    assert found["autoattack"]["value"] <= found["clean"]["value"]
    assert found["taxonomy"]["ap_key"] == "HYDRA_Sehwag2020Hydra"
    assert found["taxonomy"]["A: Pretraining "] == "TRADES"
    assert found["taxonomy"]["Type of Pipeline:"] == "A"


@pytest.mark.slow
def test_the_benchmarks_images_are_chosen_by_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The split comes in another order than the data set."""
    monkeypatch.setattr(apb, "TUNED_ON", slice(0, 20))
    monkeypatch.setattr(apb, "JUDGED_ON", slice(40, 60))
    split = digits(80)
    net = hardened()
    found = apb.evaluate(net, net, split, seed=0, trials=1)
    again = apb.evaluate(net, net, split.subset(torch.randperm(80)), seed=0, trials=1)
    assert found == again
    assert found["ho_fmn"]["images"] == 20
    low, high = binomtest(round(found["clean"]["value"] * 80), 80).proportion_ci(method="exact")
    assert (found["clean"]["low"], found["clean"]["high"]) == pytest.approx((low, high), abs=1e-9)


def test_the_benchmarks_words() -> None:
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    cifar = tuple(names.split())
    assert apb.model_key("vgg16_bn", (3, 32, 32), cifar, True, 0.9) == "AP_V16_CIFAR10_S_90"
    assert (
        apb.model_key("resnet18", (3, 32, 32), tuple("0123456789"), False, 0.99)
        == "AP_R18_SVHN_US_99"
    )
    assert apb.model_key(None, (3, 32, 32), ("a", "b"), False, 0.5) == "AP_?_?_US_50"
    rst = apb.taxonomy(get("rst").card)
    assert rst["Type of Pipeline:"] == "B"
    assert set(rst) >= {"B: Pruning step ", "B: Training step "}
    twinrep = apb.taxonomy(get("twinrep").card)
    assert twinrep["Type of Pipeline:"] == "D"
    assert not any("OneShot" in key for key in twinrep)
    assert twinrep["D: Training step "] == "AT"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((HARDENED, "--eps", "-0.1"), 2, "--eps '-0.1'"),
        ((HARDENED, "--eps", "nan"), 2, "0 <= eps <= 1"),
        ((HARDENED, "--eps", "8"), 2, "did you mean 8/255?"),
        ((HARDENED, "--norm", "l1"), 2, "--norm 'l1'"),
        ((HARDENED, "--limit-test", "0"), 2, "--limit-test"),
        ((HARDENED, "--set", "verify.images=0"), 2, "verify.images 0"),
        ((HARDENED, "--suite", "slow"), 2, "suite 'slow' is not known; use one of quick, standard"),
        ((HARDENED, "--protocol", "rb"), 2, "--protocol 'rb' is not known; use ours or apb"),
        ((HARDENED, "--attack", "sqare"), 2, "did you mean 'square'"),
        ((HARDENED, "--attack", "torchattacks:AutoAttack"), 2, "autoattack"),
        (("masked_nets:probabilities",), 65, "probabilities"),
        (("masked_nets:restless",), 11, "answers the same images differently"),
        (("masked_nets:nothing",), 66, "nothing"),
        (("masked_nets:for_colours",), 78, "cannot take images of shape (1, 8, 8)"),
        (("gone.onnx",), 66, "gone.onnx: no such file"),
        (("gone.pt", "--arch", "resnet18"), 66, "gone.pt: cannot be read"),
        (("gone.pt",), 2, "--arch NAME"),
        (("gone",), 2, "is not a model; give FILE.onnx"),
    ],
)
def test_nonsense_is_refused_in_one_line(words: tuple[str, ...], code: int, said: str) -> None:
    limit = () if "--limit-test" in words else ("--limit-test", "60")
    assert said in refused(attack(*words, *limit), code)


def test_an_engine_for_other_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "colour.onnx"
    net = build(Architecture("resnet20", 10, (3, 32, 32), (0.0,) * 3, (1.0,) * 3)).eval()
    to_onnx(net, (3, 32, 32), path)
    assert "takes images (3, 32, 32)" in refused(attack(path, *COMMON), 78)


def test_a_folder_of_ours_is_attacked(tmp_path: Path) -> None:
    arch = Architecture("digits_resnet", 10, (1, 8, 8), (0.5,), (0.3,))
    save(build(arch), arch, tmp_path / "net")
    result = attack(tmp_path / "net", *COMMON, "--attack", "fgsm", "--json")
    assert result.code == 0
    assert result.json["target"]["runtime"] == "torch"
