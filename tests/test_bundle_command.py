"""Promise: `advprune bundle` ships what a run made and measured, and checks such a bundle."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from signing_keys import Keys, make_keys
from tiny_run import Tiny, advprune, refusal
from triton_config import parse_config

from deploy.bundle.check import check_integrity
from deploy.recording import arrays_of
from deploy.runtime import load
from deploy.sealed import seal, unseal
from deploy.verdicts import read

pytest_plugins = ["tiny_fixtures"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "shipped"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    folder = tmp_path_factory.mktemp("made") / "bundle"
    assert advprune("bundle", tiny.run, "--out", folder, "--archive").code == 0
    return folder


def test_everything_that_a_device_needs_is_there(tiny: Tiny, made: Path) -> None:
    manifest = check_integrity(made)
    assert manifest["models"] == {
        "fp32": "model.onnx",
        "int8": "model.int8.x86.onnx",
        "int8-tensorrt": "model.int8.onnx",
    }
    wanted = {
        *manifest["models"].values(),
        *("labels.txt", "golden.npz", "replay.npz", "model_card.md", "mlbom.cdx.json"),
        *("edge_verify.py", "build_engine.py", "verdicts.int8.json"),
    }
    assert wanted == {name for name in manifest["files"] if not name.startswith("triton/")}
    for file in manifest["models"].values():
        assert (made / file).read_bytes() == (tiny.artefact("export") / file).read_bytes()
    assert manifest["input"]["shape"] == [1, 8, 8]
    assert manifest["metadata"]["sparsity"] == tiny.report["sparsity"]["got"]
    assert tiny.report["verdict"]["status"] in (made / "model_card.md").read_text()


def test_the_bundle_of_the_run_is_the_same(tiny: Tiny, made: Path) -> None:
    inside = tiny.artefact("bundle") / "bundle"
    assert (inside / "SHA256SUMS").read_text() == (made / "SHA256SUMS").read_text()


def test_what_is_expected_is_what_the_engines_answer(tiny: Tiny, made: Path) -> None:
    replay = arrays_of(made / "replay.npz")
    assert len(replay["labels"]) == tiny.report["images"]  # which are fewer than 256
    for name, file in check_integrity(made)["models"].items():
        engine = load(made / file)
        floats = replay["clean"].astype(np.float32) / np.float32(255)
        assert np.array_equal(engine.predict(floats), replay[f"clean_logits_{name}"])
        adversarial = engine.predict(replay["adversarial"])
        assert np.array_equal(adversarial, replay[f"adversarial_logits_{name}"])


def test_expected_verdicts_are_a_baseline(tiny: Tiny, made: Path) -> None:
    expected, verified = read(made / "verdicts.int8.json"), read(tiny.verdicts("int8"))
    assert expected.artefact == verified.artefact
    assert expected.protocol["images"] == verified.protocol["images"]  # all of them, here
    assert expected.correct["clean"] == verified.correct["clean"]
    # What the replay finds, verification found: it has the candidates of all attacks.
    shown, worst = np.array(expected.correct["replay"]), np.array(verified.flags["worst"])
    assert (shown | ~worst).all() and shown.sum() < sum(expected.correct["clean"])


def test_triton_gets_a_repository(made: Path) -> None:
    served = sorted((made / "triton").iterdir())
    cpu, gpu = (parse_config((folder / "config.pbtxt").read_text()) for folder in served)
    assert (cpu.backend, gpu.backend) == ("onnxruntime", "tensorrt")
    assert [cpu.name, gpu.name] == [folder.name for folder in served]
    model = (served[0] / "1" / "model.onnx").read_bytes()
    assert model == (made / "model.int8.x86.onnx").read_bytes()
    assert not (served[1] / "1").exists()  # an engine is built on its device


def test_a_signed_archive_is_verified_and_unpacked(
    tiny: Tiny, out: Path, keys: Keys, tmp_path: Path
) -> None:
    words = ["--release", "7", "--sign", keys.private, "--archive", "--json"]
    shown = advprune("bundle", tiny.run, "--out", out, *words)
    assert shown.code == 0, shown.err
    assert shown.json["signed"] and shown.json["release"] == 7
    archive = Path(shown.json["archive"]["path"])
    assert (
        shown.json["archive"]["files"]["model.int8.onnx"] < shown.json["files"]["model.int8.onnx"]
    )
    for path in (out, archive):
        checked = advprune("bundle", "verify", path, "--public-key", keys.public, "--json")
        assert checked.code == 0, checked.err
        assert checked.json["signature"] == "checked" and checked.json["release"] == 7
        other = make_keys(tmp_path, "ecdsa")
        assert "no signature" in refusal(
            advprune("bundle", "verify", path, "--public-key", other.public), 65
        )
        assert "release 7" in refusal(advprune("bundle", "verify", path, "--release", "8"), 78)
        assert "no key was given" in advprune("bundle", "verify", path).out
    words = [archive, tmp_path / "unpacked", "--public-key", keys.public]
    assert advprune("bundle", "unpack", *words).code == 0
    check_integrity(tmp_path / "unpacked", keys.public, 7)
    assert "exists already" in refusal(advprune("bundle", "unpack", *words), 73)


def test_the_listing_is_of_what_is_there(tiny: Tiny, out: Path) -> None:
    shown = advprune("bundle", tiny.run, "--out", out, "--archive")
    lines = shown.out.splitlines()
    assert lines[0] == f"{out}: release 0"
    listed = {line.split()[-1] for line in lines if line.startswith("  ")}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert listed == files
    assert lines[-2].startswith("not signed") and lines[-1].endswith(f"verify {out}")


def test_an_unsigned_bundle_is_refused_where_a_key_is_required(made: Path, keys: Keys) -> None:
    for path in (made, made.with_suffix(".tar")):
        message = refusal(advprune("bundle", "verify", path, "--public-key", keys.public), 65)
        assert "not signed" in message


def test_a_bit_flipped_in_any_file_is_refused(made: Path, out: Path) -> None:
    shutil.copytree(made, out)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert path.name in refusal(advprune("bundle", "verify", out), 65)
        path.write_bytes(content)


def test_what_the_gate_stopped_is_not_bundled(tiny: Tiny, tmp_path: Path, out: Path) -> None:
    run = tmp_path / "failed"
    run.mkdir()
    for entry in tiny.run.iterdir():
        (run / entry.name).symlink_to(entry.resolve())
    (entry,) = run.glob("[0-9][0-9]_gate")
    gate = shutil.copytree(entry.resolve(), tmp_path / "gate")
    manifest = unseal((gate / "manifest.json").read_bytes())
    manifest["metrics"]["verdict"] = "FAIL"
    (gate / "manifest.json").write_bytes(seal(manifest))
    entry.unlink()
    entry.symlink_to(gate)
    assert "the gate failed" in refusal(advprune("bundle", run, "--out", out), 10)
    assert not out.exists()


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, out: Path, made: Path
) -> None:
    cases: list[tuple[list[Any], int, str]] = [
        ([tmp_path / "nowhere"], 66, "not a finished run"),
        ([tiny.run, "--sign", tmp_path / "no.pem"], 66, "cannot be read"),
        ([tiny.run, "--release", "-1"], 2, "--release"),
        (["verify", tmp_path / "nowhere"], 66, "give the folder of a bundle"),
        (["verify", made, "--public-key", tmp_path / "no.pub"], 66, "cannot be read"),
        (["verify", made / "labels.txt"], 65, "not an archive of a bundle"),
        (["verify"], 2, "path"),
        (["unpack", tmp_path / "no.tar", out], 66, "give an archive"),
    ]
    for words, code, said in cases:
        options = ["--out", out] if words[0] not in ("verify", "unpack") else []
        assert said.lower() in refusal(advprune("bundle", *words, *options), code).lower()
        assert not out.exists()
    out.mkdir()
    assert "exists already" in refusal(advprune("bundle", tiny.run, "--out", out), 73)
