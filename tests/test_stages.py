"""A stage depends on its own settings and on what it reads; a training stage resumes exactly."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from stage_runs import SMALL, TRAINING, Runner, with_settings

from advprune.errors import NotFound, Refused, Unavailable
from advprune.masking import prunable_weights
from advprune.masks import load_masks
from advprune.method import Progress, get
from advprune.models.checkpoint import load
from deploy.errors import DeployError
from pipeline import shipping
from pipeline.devices import resolve_device, resolve_precision
from pipeline.plan import ORDER, plan, run_name
from pipeline.recipe import Recipe, known_keys
from pipeline.stage import Artifact, Context, Stage
from pipeline.stages import bundle
from pipeline.store import checkpoints_in
from pipeline.watch import Silent, Watch

PrecisionName = Literal["auto", "fp32", "bf16"]
STAGES = tuple(module.__name__.rpartition(".")[2] for module in ORDER)
ROBUST = ("adversarial", "prune", "finetune", "quantize")


# What a stage depends on ------------------------------------------------------------------------

# Setting -> another value, and the stages that must see it; the report shows every setting.
SEEN_BY: dict[str, tuple[Any, tuple[str, ...] | None]] = {
    "preset": ("cifar10", ()),
    "method": ("magnitude", ("prune",)),
    "sparsity": (0.8, ("prune",)),
    "compression": (4.0, ("prune",)),
    "data": ("mnist", ("data",)),
    "data_dir": ("elsewhere", ()),
    "extra_data": (Path(__file__).parent, ("data",)),  # a folder that exists
    "image_size": (16, ("data",)),
    "convert": ("rgb", ("data",)),
    "skip_bad": (True, ("data",)),
    "stream": (True, ("data",)),
    "data_workers": (3, None),  # nothing at all depends on it, not even what the report says
    "limit_train": (300, ("data",)),
    "limit_test": (300, ("data",)),
    "split_seed": (1, ("data",)),
    "model": ("resnet20", ("standard",)),
    "weights": (None, ("standard",)),  # a file, see test_weights.py
    "freeze": (("stem",), ("standard", "quantize")),  # builds the network, see test_freeze.py
    "normalize": ("none", ("standard",)),
    "objective": ("trades", ROBUST),
    "norm": ("l2", (*ROBUST, "verify")),
    "eps": (0.1, (*ROBUST, "verify")),
    "attack_steps": (3, ROBUST),
    "beta": (5.0, ()),  # not of PGD
    "replays": (9, ()),  # neither
    "seed": (1, (*TRAINING, "verify")),
    "device": ("cuda", STAGES),
    "precision": ("fp32", ("standard", "adversarial", "prune", "finetune")),
    "threads": (3, STAGES),
    "uint8_head": (True, ("export",)),
    "fp16": (True, ("export",)),
    "quantize.how": ("ptq", ("quantize",)),
    "quantize.calibration": ("percentile", ("quantize",)),
    "quantize.scales": ("observed", ("quantize",)),
    "quantize.distill": (0.5, ("quantize",)),
    "verify.split": ("train", ("verify",)),
    "verify.steps": (3, ("verify",)),
    "verify.restarts": (3, ("verify",)),
    "verify.queries": (3, ("verify",)),
    "verify.suite": ("quick", ("verify",)),
    "verify.images": (3, ("verify",)),
    "verify.fmn": (3, ("verify",)),
    "verify.apgd": (3, ("verify",)),
    "verify.health": (3, ("verify",)),
    "verify.attacks": (("fgsm",), ("verify",)),
    "gate.margin": (0.02, ("gate",)),
    "gate.policy": (("ship",), ("gate",)),
    "gate.floor": (0.5, ("gate",)),
    "gate.ratio": (0.9, ("gate",)),
    "gate.all_metrics": (True, ("gate",)),
    "gate.hard": (("size",), ("gate",)),
    "gate.baseline": (None, ("gate",)),  # a file, see below
    "gate.release": (None, ("gate",)),  # another
    **{f"{stage}.objective": ("trades", (stage,)) for stage in ROBUST},
    **{
        f"{stage}.{key}": (value, (stage,))
        for stage in TRAINING
        for key, value in {
            "epochs": 77,
            "batch_size": 77,
            "lr": 0.077,
            "momentum": 0.5,
            "weight_decay": 0.5,
            "warmup": 0.77,
            "rise": 0.77,
            "validate_every": 77,
            "accumulate": 7,
            "sync_bn": False,
        }.items()
    },
}


def configs(settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {stage.name: stage.config for stage in plan(with_settings(settings))}


def changed(settings: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> set[str]:
    before, after = configs(base or {}), configs({**(base or {}), **settings})
    return {name for name in before if before[name] != after[name]}


def test_every_setting_is_considered() -> None:
    assert set(SEEN_BY) == set(known_keys())


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.fixture(autouse=True)
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bfloat16, so that `auto` is not fp32 here."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A plan sets the threads of this process, since its results depend on them."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    "key", sorted(set(SEEN_BY) - {"gate.baseline", "gate.release", "weights", "freeze"})
)
def test_a_setting_reaches_the_stages_that_depend_on_it_and_no_other(key: str) -> None:
    value, stages = SEEN_BY[key]
    assert changed({key: value}) == (set() if stages is None else {*stages, "report"})


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu_is_as_good_as_another() -> None:
    assert changed({"device": "cuda:1"}, base={"device": "cuda"}) == {"report"}


def test_a_setting_that_an_objective_does_not_read_changes_nothing() -> None:
    assert changed({"beta": 5}, base={"objective": "trades"}) == {*ROBUST, "report"}
    assert changed({"replays": 5}, base={"objective": "free"}) == {*ROBUST, "report"}
    natural = {"objective": "natural"}
    # The better of two quantisations is the more robust one, however they were trained.
    assert changed({"eps": 0.1}, base=natural) == {"quantize", "verify", "report"}
    assert changed({"attack_steps": 3}, base=natural) == {"report"}
    calibrated = {"quantize.how": "ptq"}
    assert changed({"eps": 0.1}, base=natural | calibrated) == {"verify", "report"}
    trained = {"quantize.epochs": 5, "quantize.scales": "observed", "quantize.lr": 0.5, "seed": 1}
    assert "quantize" not in changed(trained, base=calibrated)
    # A method that reads its masks off the network does not train.
    magnitude = {"method": "magnitude"}
    assert changed({"prune.epochs": 5, "prune.batch_size": 5}, magnitude) == {"report"}


@pytest.mark.parametrize("method", ["mad", "gap", "gradient"])
def test_a_survey_depends_on_its_batches_and_its_attack_and_not_on_training(method: str) -> None:
    base = {"method": method, "objective": "natural"}
    trained = {"epochs": 5, "lr": 0.5, "momentum": 0.5, "weight_decay": 0.5, "warmup": 0.5}
    settings = {f"prune.{key}": value for key, value in trained.items()}
    assert changed(settings | {"prune.validate_every": 5}, base) == {"report"}
    assert changed({"prune.batch_size": 5}, base) == {"prune", "report"}
    # Even where nothing trains adversarially.
    assert changed({"eps": 0.1}, base) == {"prune", "quantize", "verify", "report"}
    assert changed({"attack_steps": 3}, base) == {"prune", "report"}
    assert changed({"seed": 1}, base) == {*TRAINING, "verify", "report"}


@pytest.mark.parametrize("stage", ROBUST)
def test_a_stage_that_spells_out_the_recipe_s_objective_is_the_same_stage(stage: str) -> None:
    for name in ("pgd", "mart", "natural"):
        assert changed({f"{stage}.objective": name}, base={"objective": name}) == {"report"}


@pytest.mark.parametrize("stage", ROBUST)
def test_a_stage_with_an_objective_of_its_own_does_not_see_the_recipe_s(stage: str) -> None:
    own = {f"{stage}.objective": "mart"}
    assert changed({"objective": "trades"}, base=own) == {*ROBUST, "report"} - {stage}
    assert changed({"beta": 3.0}, base=own) == {stage, "report"}
    # What MART's paper takes if nothing is said.
    assert changed({"beta": 5.0}, base=own) == {"report"}


def test_a_compression_is_refused_where_groups_of_weights_are_counted() -> None:
    filters: dict[str, Any] = {"method": "radmm", "options": {"granularity": "filter"}}
    with pytest.raises(Refused, match=r"--compression 4 counts parameters, --granularity filter"):
        plan(with_settings({**filters, "compression": 4.0}))
    assert plan(with_settings({**filters, "sparsity": 0.5}))
    assert plan(with_settings({"method": "radmm", "compression": 4.0}))


def test_options_and_source_of_the_method_belong_to_prune() -> None:
    source = Path(inspect.getfile(get("harp"))).read_bytes()
    assert configs({})["prune"]["source"] == hashlib.sha256(source).hexdigest()
    fields = get("harp").model_fields.items()
    share = next(name for name, f in fields if f.annotation is float and name != "sparsity")
    assert changed({"options": {share: 0.123}}) == {"prune", "report"}


def test_the_code_of_a_factory_belongs_to_standard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "my_nets_of_stages.py"
    module.write_text("def small(num_classes, in_channels): ...\n")
    mine = {"model": "my_nets_of_stages:small"}
    before, name = configs(mine), run_name(with_settings(mine), plan(with_settings(mine)))
    assert "my_nets_of_stages-small" in name
    module.write_text("def small(num_classes, in_channels): return None\n")
    after = configs(mine)
    assert [name for name in before if before[name] != after[name]] == ["standard"]
    with pytest.raises(NotFound, match="has no 'large'"):
        configs({"model": "my_nets_of_stages:large"})


@pytest.mark.parametrize("key", ["gate.baseline", "gate.release"])
def test_a_baseline_counts_by_its_content(tmp_path: Path, key: str) -> None:
    for name, reason in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_bytes(verdicts_file(reason))

    def gate_with(name: str) -> Mapping[str, Any]:
        return configs({key: tmp_path / name})["gate"]

    assert gate_with("a") == gate_with("b")
    assert gate_with("a") != gate_with("c")
    assert gate_with("a") != configs({})["gate"]


def test_a_baseline_is_read_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"--baseline .*none: no such file.*update") as refusal:
        configs({"gate.baseline": tmp_path / "none"})
    assert refusal.value.exit_code == 12
    (tmp_path / "broken").write_text("{}")
    with pytest.raises(DeployError, match="broken") as refusal:
        configs({"gate.baseline": tmp_path / "broken"})
    assert refusal.value.exit_code == 65


def test_runs_that_differ_in_anything_have_names_that_differ() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"gate.margin": 0.02},
        {"sparsity": 0.5},
        {"eps": 0.5},
        {},
    ]
    recipes = [with_settings(settings) for settings in variants]
    names = [run_name(recipe, plan(recipe)) for recipe in recipes]
    assert len(set(names)) == 4
    assert names[0] == names[-1]
    assert names[2].startswith("digits_digits_resnet_harp_s0.5_seed0_")


def verdicts_file(reason: str) -> bytes:
    from deploy.verdicts import Verdicts

    protocol = {
        "data": "0" * 64,
        "images": "0" * 64,
        "labels": "0" * 64,
        "threat": {"norm": "linf", "eps": 0.1, "low": 0.0, "high": 1.0},
        "attacks": [],
        "seed": 0,
        "input": "float32 NCHW [0,1]",
    }
    artefact = {"file": "m", "sha256": "0" * 64, "precision": "int8"}
    return Verdicts(protocol, artefact, {"clean": [True]}, reason).to_json()


# Training ---------------------------------------------------------------------------------------


class Stopped(Watch):
    """Ctrl-C in the middle of an epoch, after two have been saved."""

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if progress.step > 2 * progress.epoch_steps:
            raise KeyboardInterrupt
        super().step(progress, metrics)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    runner = Runner(SMALL, tmp_path_factory.mktemp("runs"))
    for name in ("data", "standard", "adversarial"):
        runner.build(name)
    return runner


def test_a_stage_that_was_interrupted_ends_as_if_it_had_not_been(
    runner: Runner, tmp_path: Path
) -> None:
    whole = runner.build("prune")
    other = Runner(SMALL, tmp_path)
    other.made = {k: v for k, v in runner.made.items() if k != "prune"}
    with pytest.raises(KeyboardInterrupt):
        other.build("prune", Stopped)
    left = [path.name for path in (tmp_path / "store").iterdir()]
    assert left == [f".tmp-{whole.path.name}"]
    kept = checkpoints_in(tmp_path / "store" / left[0])
    assert len(kept) == 2

    histories = []

    class Counted(Watch):
        def save(self, step: int, tensors: dict, history: list[dict]) -> None:
            histories.append(len(history))
            super().save(step, tensors, history)

    resumed = other.build("prune", Counted)
    assert histories == [2]
    assert resumed.digest == whole.digest
    assert len((whole.path / "metrics.jsonl").read_text().splitlines()) == 3


def test_where_no_checkpoint_is_whole_a_stage_begins_anew(runner: Runner, tmp_path: Path) -> None:
    other = Runner(SMALL, tmp_path)
    other.made = {k: v for k, v in runner.made.items() if k in ("data", "standard")}
    name = runner.made["adversarial"].path.name
    temporary = tmp_path / "store" / f".tmp-{name}"
    temporary.mkdir(parents=True)
    for step in (1, 2):
        (temporary / f".checkpoint-{step:09d}").write_bytes(b"torn")
    assert other.build("adversarial").digest == runner.made["adversarial"].digest


def test_removed_weights_stay_exactly_zero(runner: Runner) -> None:
    pruned = runner.build("prune")
    tuned = runner.build("finetune")
    masks = load_masks(pruned.file("masks.safetensors"))
    assert set(masks) == set(prunable_weights(load(tuned.check())))
    for artifact in (pruned, tuned):
        weights = load(artifact.check()).state_dict()
        for name, mask in masks.items():
            assert not weights[name][~mask].any()
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept == round(0.1 * total)
    assert pruned.metrics["kept"] == kept
    assert tuned.metrics["sparsity"] == pytest.approx(1 - kept / total)
    before = load(pruned.path).state_dict()
    after = load(tuned.path).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in masks)


def test_no_epochs_leave_the_network_as_it_was(runner: Runner, tmp_path: Path) -> None:
    # Also with the choice of the best epoch, of which there is none.
    none = {"adversarial.epochs": 0, "adversarial.validate_every": 1}
    other = Runner(with_settings(none, SMALL), tmp_path)
    other.made = {k: v for k, v in runner.made.items() if k in ("data", "standard")}
    made = other.build("adversarial")
    weights = "weights.safetensors"
    assert made.file(weights).read_bytes() == runner.made["standard"].file(weights).read_bytes()


# Gate and bundle --------------------------------------------------------------------------------


def test_nothing_is_bundled_when_the_gate_failed(tmp_path: Path) -> None:
    failed = cast(Artifact, SimpleNamespace(metrics={"verdict": "FAIL"}))
    context = Context(SMALL, {"gate": failed}, tmp_path, Silent())
    metrics = bundle.stage(SMALL).run(context)
    assert str(metrics["bundle"]).startswith("none")
    assert [path.name for path in tmp_path.iterdir()] == ["skipped.json"]


def test_a_bundle_has_sixteen_samples_even_of_few_images() -> None:
    images = np.arange(5)[:, None]
    assert shipping._pad(images)[:, 0].tolist() == [0, 1, 2, 3, 4] * 3 + [0]


# Devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("cpu", 1, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    assert resolve_device(name) == expected


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("cuda", Unavailable, "this machine has 0 CUDA devices; use --device cpu"),
        ("cuda:7", Unavailable, "--device cuda:7"),
        ("quda", Refused, "is not a device; use auto, cpu, cuda or cuda:N"),
        ("", Refused, "is not a device"),
        ("meta", Refused, "is not supported"),
        ("mps", Refused, "is not supported"),
    ],
)
def test_a_device_that_is_not_there_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Refused], words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(kind, match=words) as refusal:
        resolve_device(name)
    assert refusal.value.exit_code == {Unavailable: 69, Refused: 2}[kind]


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize("name", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_automatic_precision_is_what_the_device_multiplies_by_itself(
    monkeypatch: pytest.MonkeyPatch, device: str, name: PrecisionName, able: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    if device == "cuda" and name == "bf16" and not able:
        with pytest.raises(Unavailable, match="this GPU has no bfloat16; use --precision fp32"):
            resolve_precision(name, device)
    else:
        expected = name if name != "auto" else "bf16" if able else "fp32"
        assert resolve_precision(name, device) == expected


def test_a_stage_knows_its_needs_before_they_are_used() -> None:
    made: set[str] = set()
    stages: list[Stage] = plan(Recipe())
    for stage in stages:
        assert set(stage.needs) <= made
        made.add(stage.name)
    assert replace(stages[0], version=2).key({}) != stages[0].key({})
