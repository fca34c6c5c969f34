"""Promise: a row of the CIFAR-10 table goes on after a stop, and elsewhere, in the same bits."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scripts import script

from advprune.data import ImageSet, Split, load
from advprune.evaluate import is_correct, predict
from advprune.method import Task, get
from advprune.models import Architecture, build
from advprune.objectives import Objective
from advprune.train import Schedule, fit
from advprune.twin import differentiable
from advprune.types import Threat
from export.to_onnx import to_onnx
from pipeline.checkpoints import Checkpoints
from pipeline.resolve import flatten, resolve
from pipeline.watch import Silent

parcel = script("cifar10/parcel")
judging = script("judge")
row = script("cifar10/row")
table = script("cifar10/table")

ROWS = row.read_rows()


class Keeping(Silent):
    """Keeps checkpoints in a folder, and says nothing."""

    def __init__(self, folder: Path) -> None:
        self._checkpoints = Checkpoints(folder, print)

    def save(self, step: int, tensors: dict[str, torch.Tensor], history: list[dict]) -> None:
        self._checkpoints.save(step, tensors, history)


def store(runs: Path) -> dict[str, bytes]:
    """A folder as it stands in the middle of a search: two stages done, one with checkpoints."""
    weights = {"a": torch.randn(400, 50), "zero": torch.zeros(300, 30)}
    scores = {"net/a": weights["a"], "net/scores": torch.randn(400, 50)}
    done = runs / "store" / "adversarial-0"
    done.mkdir(parents=True)
    (done / "weights.safetensors").write_bytes(safetensors.torch.save(weights))
    (done / "manifest.json").write_text("{}")
    making = runs / "store" / ".tmp-prune-1"
    making.mkdir()
    checkpoints = Checkpoints(making, print)
    for step in (1, 2):
        checkpoints.save(step, scores | {"step": torch.tensor(step)}, [{"epoch": step}])
    for stage, epochs in (("data", 0), ("standard", 0), ("standard", 3)):
        folder = runs / "store" / f"{stage}-{epochs}x"
        folder.mkdir()
        config = {"config": {"training": {"epochs": epochs}}}
        (folder / "manifest.json").write_text(json.dumps(config))
    (runs / "rows").mkdir()
    (runs / "rows" / "odd.bin").write_bytes(os.urandom(1001))
    return {p.relative_to(runs).as_posix(): p.read_bytes() for p in parcel.needed(runs)}


def test_what_travels_comes_back_bit_by_bit(tmp_path: Path) -> None:
    files = store(tmp_path / "here")
    parts = parcel.pack(tmp_path / "here", part_bytes=50_000)
    assert len(parts) > 1 and all(len(part) <= 50_000 for part in parts)
    assert parcel.unpack(parts, tmp_path / "there") == len(files)
    there = tmp_path / "there"
    found = {
        p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()
    }
    assert found == files
    saved = Checkpoints(there / "store" / ".tmp-prune-1", print).latest()
    assert saved is not None and saved[0] == 2


def test_only_what_cannot_be_made_again_travels(tmp_path: Path) -> None:
    names = set(store(tmp_path))
    assert not any("data-" in name or "standard-0x" in name for name in names)
    assert {"store/standard-3x/manifest.json", "rows/odd.bin"} <= names
    assert [name for name in names if ".checkpoint-" in name] == [
        "store/.tmp-prune-1/.checkpoint-000000002"
    ]


def test_a_tensor_that_occurs_twice_is_stored_once(tmp_path: Path) -> None:
    store(tmp_path)
    twice = 400 * 50 * 4  # "a", in a stage and in the checkpoint after it
    whole = sum(path.stat().st_size for path in parcel.needed(tmp_path))
    assert sum(map(len, parcel.pack(tmp_path))) < whole - twice - 300 * 30 * 4


def test_a_parcel_that_is_too_large_says_by_how_much(tmp_path: Path) -> None:
    store(tmp_path)
    with pytest.raises(parcel.ParcelError, match=r"are \d+ parts of 1,000, and 8 are allowed"):
        parcel.pack(tmp_path, part_bytes=1000)


@pytest.mark.parametrize("damage", ["flip", "lost", "swapped", "empty"])
def test_a_damaged_parcel_is_refused(tmp_path: Path, damage: str) -> None:
    store(tmp_path / "here")
    parts = parcel.pack(tmp_path / "here", part_bytes=60_000)
    if damage == "flip":
        parts[1] = parts[1][:7] + bytes([parts[1][7] ^ 1]) + parts[1][8:]
    elif damage == "lost":
        del parts[-1]
    elif damage == "swapped":
        parts[0], parts[1] = parts[1], parts[0]
    else:
        parts = []
    with pytest.raises(parcel.ParcelError, match="not a parcel"):
        parcel.unpack(parts, tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "store/../../out"])
def test_a_parcel_writes_nowhere_else(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "rows").mkdir(parents=True)
    (tmp_path / "here" / "rows" / "x").write_text("x")
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value: dumps(value).replace("rows/x", name))
    parts = parcel.pack(tmp_path / "here")
    monkeypatch.undo()
    with pytest.raises(parcel.ParcelError, match="leads out"):
        parcel.unpack(parts, tmp_path / "there")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 4096, 4099])
def test_the_planes_of_any_bytes_go_back(length: int) -> None:
    data = np.random.default_rng(0).bytes(length)
    assert parcel._unplanes(parcel._planes(data)) == data


@pytest.mark.parametrize("name", list(ROWS["rows"]))
@pytest.mark.parametrize("rehearse", [False, True])
def test_every_row_is_a_recipe(name: str, rehearse: bool) -> None:
    layers = [ROWS["common"], ROWS["rows"][name]["settings"]]
    layers += [ROWS["rehearsal"], ROWS["rows"][name].get("rehearsal", {})] if rehearse else []
    settings = {key: value for layer in layers for key, value in flatten(layer).items()}
    recipe, _ = resolve({**settings, "data": "folder:x"}, environment={})
    assert recipe.eps == 8 / 255
    if not rehearse:
        assert recipe.quantize.how == "auto"
        assert (recipe.model, recipe.limit_train, recipe.attack_steps) == ("resnet18", None, 10)
        assert recipe.adversarial.epochs >= 60
        objective = "mad" if name.startswith("mad") else "pgd"
        assert recipe.robust_objective(recipe.finetune).name == objective


def test_a_judgement_goes_on_where_it_was_broken_off(
    tmp_path: Path,
) -> None:
    images = load("digits", data_dir=tmp_path)
    exported = tmp_path / "model.onnx"
    net = build(Architecture("digits_resnet", 10, images.shape, (0.3,), (0.3,)))
    to_onnx(net.eval(), images.shape, exported)
    split, threat = images.test.first(70), Threat(0.1)
    measures = {"clean": "", "pgd10": "pgd:steps=2"}
    asked = 0

    def over() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    arguments: Any = ({"int8": exported}, split, threat, 0)
    assert judging.judge(*arguments, tmp_path / "a", measures, piece=30, over=over) is None
    assert len(list((tmp_path / "a").iterdir())) == 2
    later = judging.judge(*arguments, tmp_path / "a", measures, piece=30)
    whole = judging.judge(*arguments, tmp_path / "b", measures, piece=70)
    for found in (later, whole):
        for measure in measures:
            found["int8"][measure].pop("seconds")
    assert later == whole
    twin = differentiable(exported.read_bytes(), "x")
    right = is_correct(predict(twin, split.images), split.labels)
    assert later["int8"]["clean"]["value"] == float(right.double().mean())


def result(name: str, clean: float, pgd10: float, autoattack: float) -> dict[str, Any]:
    shares = {
        measure: {"value": value, "low": value - 0.01, "high": value + 0.01}
        for measure, value in (("clean", clean), ("pgd10", pgd10), ("autoattack", autoattack))
    }
    about = ROWS["rows"][name]
    return {
        "row": name,
        "title": about["title"],
        "rehearsal": False,
        "published": about.get("published"),
        "recipe": {"seed": 0},
        "engines": {"fp32": shares, "int8": shares},
        "pipeline": {"sparsity": 0.99},
        "pieces": [{"seconds": 450.2}, {"seconds": 1000.0}],
    }


def test_the_table_says_what_was_published_and_how_far_off_it_is(tmp_path: Path) -> None:
    rows = [result("magnitude-99", 0.7, 0.4, 0.35), result("harp-99", 0.8125, 0.4875, 0.45)]
    head, _, first, second = table.table(rows).splitlines()
    assert "published" in head
    assert first.startswith("| HARP, 99 % | 0 | 80.25 / 50.36 / – | 81.25 / 48.75 / 45.00 ± 1.00 |")
    assert "| clean +1.00, **PGD-10 -1.61** | 99.00 % | 1,450 | 2 |" in first
    assert second.startswith("| magnitude, 99 % (control) | 0 | – / – / – |")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["adversarial", "harp"])
def test_resnet18_in_the_middle_of_its_longest_stages_fits_in_a_parcel(
    tmp_path: Path, stage: str, record_property: Any
) -> None:
    """One step of training fills every tensor that a later one would have."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=random)
    split = Split(pixels, torch.arange(8) % 2, torch.arange(8))
    images = ImageSet("noise", ("a", "b"), split, split, split, split, "none", "")
    net = build(Architecture("resnet18", 10, images.shape, (0.5,) * 3, (0.25,) * 3))
    done, making = tmp_path / "store" / "adversarial-0", tmp_path / "store" / f".tmp-{stage}-1"
    making.mkdir(parents=True)
    searching = stage == "harp"
    if searching:
        done.mkdir()
        (done / "weights.safetensors").write_bytes(safetensors.torch.save(net.state_dict()))
    keeper = Keeping(making)
    task = Task(Objective("natural", Threat(8 / 255)), 0, images.shape)
    method = get("harp")(sparsity=0.99) if searching else None
    fit(net, images, task, Schedule(2, 8), keeper, method, select=not searching)
    parts = parcel.pack(tmp_path)
    record_property("bytes", sum(map(len, parts)))


@pytest.mark.slow
def test_a_row_is_stopped_packed_unpacked_and_comes_to_the_same_end(
    tmp_path: Path, record_property: Any
) -> None:
    """On digits: the way of a row knows nothing of CIFAR-10 but its settings."""
    rows = ROWS | {"rehearsal": ROWS["rehearsal"] | {"limit_train": 1100, "eps": 0.1}}
    settings: Any = {"data": "digits", "out": tmp_path / "out", "seed": 0, "rehearse": True}
    assert row.piece("harp-99", rows, runs=tmp_path / "whole", seconds=None, **settings)
    label = "harp-99-seed0-rehearsal.json"
    undisturbed = json.loads((tmp_path / "out" / label).read_bytes())
    place, stops = tmp_path / "runs0", 0
    while not row.piece("harp-99", rows, runs=place, seconds=6.0 + 2 * stops, **settings):
        stops += 1
        there = tmp_path / f"runs{stops}"
        parcel.unpack(parcel.pack(place), there)
        shutil.rmtree(place)
        place = there
    record_property("trials", stops)
    assert stops > 1
    moved = json.loads((tmp_path / "out" / label).read_bytes())
    assert len(moved["pieces"]) == stops + 1
    for found in (undisturbed, moved):
        for engine in found["engines"].values():
            for measure in row.SHORT:
                engine[measure].pop("seconds")
    assert moved["engines"] == undisturbed["engines"]
