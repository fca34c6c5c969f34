"""Promise: the 8 bits that ship are the better ones on images that nothing was trained on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stage_runs import SMALL, Runner, with_settings

from advprune.data import read
from advprune.errors import Incompatible
from advprune.masks import load_masks
from advprune.twin import differentiable
from deploy.replay import classifier
from export import graph
from export.check import weights
from pipeline.recipe import Recipe
from pipeline.stages import quantize
from pipeline.stages.quantize import FLOAT, INT8

RECIPE = with_settings({"quantize.lr": 0.02}, SMALL)
JUDGE = quantize._judge


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A run as far as fine-tuning."""
    runner = Runner(RECIPE, tmp_path_factory.mktemp("runs"))
    for name in ("data", "standard", "adversarial", "prune", "finetune"):
        runner.build(name)
    return runner


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about what is done with a judgement."""
    monkeypatch.setattr(quantize, "_judge", lambda *_: (0.5, 0.9))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def after(before: Runner, **settings: object) -> Runner:
    """The same run with other settings of this stage, which is built."""
    recipe = with_settings({f"quantize.{key}": v for key, v in settings.items()}, RECIPE)
    runner = Runner(recipe, before.store.root)
    runner.made = dict(before.made)
    runner.build("quantize")
    return runner


def quantisation(runner: Runner) -> tuple[str, str]:
    """What the stage says it kept, and what the file says it is."""
    artifact = runner.made["quantize"]
    entries = {entry.key: entry.value for entry in graph.load(artifact.path / INT8).metadata_props}
    return str(artifact.metrics["quantisation"]), entries["quantisation"]


@pytest.mark.parametrize(
    ("ptq", "qat", "kept", "momentum"),
    [
        # A setting of its own for each case, or the second would find the first in the store.
        ((0.50, 0.90), (0.51, 0.80), "qat", 0.11),
        ((0.51, 0.80), (0.50, 0.90), "ptq", 0.12),
        ((0.50, 0.80), (0.50, 0.90), "qat", 0.13),
        ((0.50, 0.90), (0.50, 0.90), "ptq", 0.14),
    ],
)
def test_the_better_one_is_kept(
    before: Runner,
    monkeypatch: pytest.MonkeyPatch,
    ptq: tuple[float, float],
    qat: tuple[float, float],
    kept: str,
    momentum: float,
) -> None:
    answers = iter([ptq, qat])

    def judge(path: Path, recipe: Recipe, images: object) -> tuple[float, float]:
        return next(answers)

    monkeypatch.setattr(quantize, "_judge", judge)
    runner = after(before, momentum=momentum)
    assert quantisation(runner) == (kept, kept)
    metrics = runner.made["quantize"].metrics
    assert (metrics["unseen_robust"], metrics["unseen_clean"]) == {"ptq": ptq, "qat": qat}[kept]
    assert (metrics["unseen_robust_ptq"], metrics["unseen_robust_qat"]) == (ptq[0], qat[0])


@pytest.mark.parametrize("how", ["ptq", "qat"])
def test_what_is_asked_for_is_done(before: Runner, how: str) -> None:
    runner = after(before, how=how)
    assert quantisation(runner) == (how, how)
    artifact = runner.made["quantize"]
    trained = "metrics.jsonl" in artifact.manifest["files"]
    assert trained == (how == "qat") == ("unseen_robust" in artifact.metrics)


@pytest.mark.parametrize("settings", [{}, {"scales": "observed"}, {"distill": 0.5}])
def test_training_keeps_the_masks_and_changes_the_weights(
    before: Runner, settings: dict[str, object]
) -> None:
    folder = after(before, how="qat", **settings).made["quantize"].path
    calibrated = after(before, how="ptq").made["quantize"].path
    masks = load_masks(before.made["prune"].path / "masks.safetensors")
    trained, plain = weights(folder / INT8), weights(calibrated / INT8)
    assert trained.keys() == masks.keys()
    changed = 0
    for name, codes in trained.items():
        assert not codes[~masks[name].numpy()].any(), name
        changed += int((codes != plain[name]).sum())
    assert changed > 0
    assert (folder / FLOAT).read_bytes() == (calibrated / FLOAT).read_bytes()


def test_a_quantisation_is_judged_by_its_engine_under_attack(
    before: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = after(before, how="qat")
    artifact, data = runner.made["quantize"], read(before.made["data"].path)
    asked: list[int] = []

    def counted(engine: object) -> object:
        ask = classifier(engine)  # pyright: ignore[reportArgumentType]

        def answer(x: torch.Tensor) -> torch.Tensor:
            asked.append(len(x))
            return ask(x)

        return answer

    monkeypatch.setattr(quantize, "classifier", counted)
    robust, clean = JUDGE(artifact.path / INT8, runner.recipe, data)
    unseen = data.val.and_those_of(data.calib)
    assert sum(asked) > len(unseen) * 3
    assert 0 <= robust < clean <= 1
    twin = differentiable((artifact.path / INT8).read_bytes(), INT8)
    with torch.no_grad():
        right = twin(unseen.images / 255).argmax(1) == unseen.labels
    assert clean == pytest.approx(float(right.double().mean()), abs=1.5 / len(unseen))
    assert (robust, clean) == JUDGE(artifact.path / INT8, runner.recipe, data)


def test_where_nothing_can_be_trained_calibration_stays(
    before: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Incompatible("quantise: no training through Loop 'x'; use ptq")

    monkeypatch.setattr(quantize, "FakeQuant", refuse)
    runner = after(before, momentum=0.123)
    assert quantisation(runner) == ("ptq", "ptq")
    assert "no training through Loop" in str(runner.made["quantize"].metrics["no_training"])
    with pytest.raises(Incompatible, match="no training through Loop"):
        after(before, momentum=0.123, how="qat")


def test_the_same_settings_give_the_same_bytes(before: Runner, tmp_path: Path) -> None:
    first = after(before, how="qat").made["quantize"]
    again = Runner(with_settings({"quantize.how": "qat"}, RECIPE), tmp_path)
    again.made = dict(before.made)
    assert again.build("quantize").digest == first.digest
