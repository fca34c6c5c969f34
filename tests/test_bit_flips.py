"""No flipped bit and no cut goes unnoticed, in nothing that is written and read again.

Formats notice next to nothing themselves: of 300 flips in weights, a safetensors reader sees 2. So
every file has a digest somewhere, and its reader looks there first.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundles import make_bundle
from signing_keys import make_keys
from tensorrt_runtime import write_engine
from tiny_run import STAGES, Tiny, advprune, refusal
from verdict_files import costs, example, health

from advprune.errors import BadData
from deploy import edge_verify, verdicts
from deploy.bundle.archive import pack, unpack
from deploy.bundle.check import check_integrity
from deploy.errors import DeployError
from deploy.gate_baseline import update_baseline
from deploy.runtimes.engine_card import read_card
from deploy.sealed import seal, unseal
from pipeline.commands.results import context_of
from pipeline.resolve import resolve
from pipeline.stage import MANIFEST, read_artifact

pytest_plugins = ["tiny_fixtures"]

# Every file of a run, as "stage/name"; of what the training stages all have, one is enough.
OF_A_RUN = (
    *(f"{stage}/manifest.json" for stage in STAGES),
    "data/data.json",
    "data/data.safetensors",
    "finetune/architecture.json",
    "finetune/metrics.jsonl",
    "finetune/weights.safetensors",
    "prune/masks.safetensors",
    "quantize/model.onnx",
    "quantize/model.int8.onnx",
    "export/model.onnx",
    "export/model.int8.onnx",
    "export/model.int8.x86.onnx",
    "export/model.int8.openvino.onnx",
    "verify/verification.json",
    "verify/measurements.json",
    "verify/recording.npz",
    "verify/gallery.npz",
    "verify/verdicts.fp32.json",
    "verify/verdicts.int8.json",
    "gate/gate.json",
    "gate/gate.md",
    "gate/junit.xml",
    "gate/metrics.txt",
    "report/report.json",
    "report/report.html",
    "report/report.md",
)
OF_A_BUNDLE = (
    *("manifest.json", "manifest.json.sig", "SHA256SUMS", "labels.txt", "golden.npz", "replay.npz"),
    *("model.onnx", "model.int8.x86.onnx", "model_card.md", "triton/linear/config.pbtxt"),
)
ALONE = ("verdicts", "baseline", "engine card", "engine", "archive")
KINDS = (
    *OF_A_RUN,
    *ALONE,
    *(f"signed bundle/{name}" for name in OF_A_BUNDLE),
    *(f"bundle on a device/{name}" for name in OF_A_BUNDLE if not name.endswith(".sig")),
)
BLOCK = 4096


@dataclass(frozen=True)
class Kind:
    """One file, what reads it, and what the refusal must name."""

    path: Path
    read: Callable[[], object]
    named: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle, its archive, verdicts, a baseline and an engine."""
    folder = tmp_path_factory.mktemp("flips")
    keys = make_keys(folder)
    pack(make_bundle(folder, keys.private), folder / "archive")
    found = example(measured=costs(), health=health(suspect=("H9",)))
    verdicts.write(folder / "verdicts", found)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)
        for sha in ("a", "b"):
            update_baseline(folder / "baseline", example(sha=sha, measured=costs()), "first")
    write_engine(folder)
    (folder / "engine").symlink_to("model.plan")
    (folder / "engine card").symlink_to("model.plan.json")
    return folder


@pytest.fixture
def kind(
    request: pytest.FixtureRequest,
    tiny: Tiny,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Kind:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of a thousand unpacked bundles
    group, _, name = request.param.partition("/")
    if request.param in OF_A_RUN:
        # A copy: the run is shared.
        copy = Path(shutil.copytree(tiny.artefact(group), tmp_path / group))
        return Kind(copy / name, lambda: read_artifact(copy).check(), str(copy / name))
    if group == "signed bundle":
        bundle, key = folder / "bundle", folder / "ed25519.pub"
        return Kind(bundle / name, lambda: check_integrity(bundle, key), str(bundle))
    if group == "bundle on a device":
        bundle = folder / "bundle"
        return Kind(bundle / name, lambda: edge_verify.check_files(bundle), "bundle")
    path = folder / group
    if group == "archive":
        return Kind(path, lambda: _unpack(path, folder / "ed25519.pub"), "archive")
    if group.startswith("engine"):
        plan = folder / "model.plan"
        return Kind(path.resolve(), lambda: read_card(plan, plan.read_bytes()), str(plan))
    return Kind(path, lambda: verdicts.read(path), str(path))


def _unpack(archive: Path, key: Path) -> None:
    unpack(archive, archive.parent / "unpacked", key)
    shutil.rmtree(archive.parent / "unpacked")


def unnoticed(kind: Kind, damaged: Iterable[bytes]) -> tuple[int, list[int]]:
    """How often the file was damaged, and which damages were not refused as they must be."""
    whole, missed, number = kind.path.read_bytes(), [], 0
    kind.read()
    try:
        for number, content in enumerate(damaged, 1):
            kind.path.write_bytes(content)
            try:
                kind.read()
            except (BadData, DeployError, edge_verify.Refused) as error:
                message = str(error)
                if error.exit_code == 65 and message.isprintable() and kind.named in message:
                    continue
            missed.append(number)
    finally:
        kind.path.write_bytes(whole)
    kind.read()
    return number, missed


def flips(kind: Kind, count: int) -> Iterable[bytes]:
    """Copies of the file, each with another bit flipped."""
    whole = kind.path.read_bytes()
    bits = 8 * len(whole)
    for place in random.Random(kind.path.name).sample(range(bits), min(count, bits)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        yield bytes(content)


def cuts(kind: Kind) -> Sequence[bytes]:
    """The file cut short after every 4 KiB, or where it is smaller at every byte."""
    whole = kind.path.read_bytes()
    step = BLOCK if len(whole) > BLOCK else 1
    return [whole[:size] for size in range(0, len(whole), step)]


@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_flipped_bit_and_a_cut_are_refused_by_name(kind: Kind) -> None:
    assert unnoticed(kind, flips(kind, 50)) == (50, [])
    every = cuts(kind)
    few = every[:: -(-len(every) // 10)]
    assert unnoticed(kind, few) == (len(few), [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, indirect=True)
def test_a_thousand_flips_and_every_cut_are_refused(
    kind: Kind, record_property: Callable[[str, object], None]
) -> None:
    flipped, missed = unnoticed(kind, flips(kind, 1000))
    assert (flipped, missed) == (min(1000, 8 * kind.path.stat().st_size), [])
    cut, missed = unnoticed(kind, cuts(kind))
    assert (cut, missed) == (len(cuts(kind)), [])
    record_property("trials", flipped + cut)


def test_no_file_of_a_run_is_left_out_and_none_stands_for_another(tiny: Tiny) -> None:
    """A new kind of file has to be added above; a bundle inside a run has its kinds of its own."""
    names = {Path(name).name for name in OF_A_RUN}
    found = {
        path.name
        for stage in STAGES
        for path in tiny.artefact(stage).rglob("*")
        if path.is_file() and "bundle" not in path.relative_to(tiny.artefact(stage)).parts
    }
    assert found == names
    assert len(set(KINDS)) == len(KINDS)


@pytest.mark.parametrize("what", ["04_finetune", "06_export/model.int8.x86.onnx"])
def test_a_damaged_part_of_a_run_is_not_attacked(tiny: Tiny, tmp_path: Path, what: str) -> None:
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))  # links become what they point to
    path = run / what
    file = path / "weights.safetensors" if path.is_dir() else path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"{file}: missing or changed" in refusal(advprune("attack", path), 65)


def test_a_run_is_what_its_manifests_say_and_not_its_recipe_toml(
    tiny: Tiny, tmp_path: Path
) -> None:
    recipe, _ = resolve({}, file=tiny.run / "recipe.toml", environment={})
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    (run / "recipe.toml").write_text("seed = 7\n")  # which people may edit
    assert context_of(run).recipe == recipe
    (path,) = run.glob("[0-9][0-9]_report")
    manifest = unseal((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_bytes(seal({**manifest, "config": {}}))
    with pytest.raises(BadData, match=r"09_report: holds no recipe of a run .*; run again"):
        context_of(run)
