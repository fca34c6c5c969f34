"""Promise: a bundle tells on any device whether it is still what was measured, with what is there.

The script runs in a Python that has numpy and onnxruntime alone. Refusals of single values are held
in this process, where they cost no start of an interpreter: `test_edge_verify_refusals.py`.
"""

import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bare_python import make_bare_python, run_bare, without_override
from edge_bundle import FILES, contents, write_bundle
from exported_net import Exported
from numpy.typing import NDArray
from scipy.stats import binomtest

from deploy.sealed import unseal

pytest_plugins = ["export_fixtures"]

QUICK = ("--calls", "5")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bare_python(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def shipped(varied: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("shipped") / "net", varied)


@pytest.fixture
def bundle(shipped: Path, tmp_path: Path) -> Path:
    """On the device, below a folder of its own."""
    (tmp_path / "device").mkdir()
    return Path(shutil.copytree(shipped, tmp_path / "device" / "net"))


def verify(python: Path, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), str(bundle / "edge_verify.py"), *QUICK, *arguments]
    return run_bare(command, bundle.parent)


def unpacked(packed: str, count: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8))
    assert not bits[count:].any() and len(bits) - count < 8
    return bits[:count]


def flags_of(bundle: Path, model: str) -> dict[str, NDArray[Any]]:
    """What the stored logits of a model say, image by image."""
    with np.load(bundle / "replay.npz") as replay:
        labels = replay["labels"]
        clean = replay[f"clean_logits_{model}"].argmax(1) == labels
        attacked = replay[f"adversarial_logits_{model}"].argmax(1) == labels
    return {"clean": clean, "replay": clean & attacked, "worst": clean & attacked}


def test_the_device_has_nothing_of_ours(python: Path, tmp_path: Path):
    names = ("torch", "onnx", "pip", "advprune", "export", "deploy", "pipeline")
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    result = run_bare([str(python), "-c", f"import numpy, onnxruntime; {code}"], tmp_path)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


def test_a_sound_bundle_passes_and_stays_as_it_was(python: Path, bundle: Path):
    before = {name: path.read_bytes() for name, path in contents(bundle).items()}
    result = verify(python, bundle)
    assert (result.returncode, result.stderr) == (0, "")
    assert {name: path.read_bytes() for name, path in contents(bundle).items()} == before
    assert {path.name for path in bundle.parent.iterdir()} == {"net", "net.edge"}
    edge = bundle.with_name("net.edge")
    assert set(contents(edge)) == {"edge.json", "edge.int8.json"}
    assert "net, release 3, on linux/" in result.stdout
    assert "no TensorRT: gpu: libcuda.so.1" in result.stdout
    command = f"{edge / 'edge.int8.json'} --baseline {bundle / 'verdicts.int8.json'}"
    assert result.stdout.endswith(f"python -m deploy.gate {command}\n")


def test_the_record_says_what_was_found(python: Path, bundle: Path):
    result = verify(python, bundle, "--json", "--out", "found", "--runtime", "ort")
    assert result.returncode == 0
    record = json.loads(result.stdout)
    found = bundle.with_name("found")
    assert json.loads((found / "edge.json").read_text()) == record
    assert (record["failures"], record["warnings"]) == ([], [])
    assert (record["runtime"], record["images"]) == ("onnxruntime", 64)
    assert record["why"].startswith("asked for") and "onnxruntime" in record["where"]
    manifest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert record["manifest_sha256"] == manifest
    assert set(record["engines"]) == {"int8", "fp32"}
    for engine in record["engines"].values():
        assert engine["file"] == FILES[engine["model"]]
        assert engine["agreement"] == {"clean": 1, "replay": 1}
        assert engine["golden"]["gap"] <= engine["golden"]["allowed"]
        flags = flags_of(bundle, engine["model"])
        for kind, share in engine["accuracy"].items():
            right, count = int(flags[kind].sum()), len(flags[kind])
            exact = binomtest(right, count).proportion_ci(method="exact")
            assert share["value"] == share["expected"] == right / count
            np.testing.assert_allclose([share["low"], share["high"]], [exact.low, exact.high])
        times = engine["latency"]
        assert len(times["samples_ms"]) == 5 and times["images_per_second"] > 0
        assert times["p99_ms"] == max(times["samples_ms"])
        assert times["p50_ms"] == float(np.median(times["samples_ms"]))
    clean, replay = (record["engines"]["int8"]["accuracy"][kind] for kind in ("clean", "replay"))
    assert 0 < replay["value"] < clean["value"] < 1


def test_verdicts_are_what_the_gate_reads(python: Path, bundle: Path):
    assert verify(python, bundle).returncode == 0
    content = unseal((bundle.with_name("net.edge") / "edge.int8.json").read_bytes())
    protocol = json.loads((bundle / "manifest.json").read_text())["protocol"]
    identity = {"protocol": protocol, "precision": "int8"}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    record = json.loads((bundle.with_name("net.edge") / "edge.json").read_text())
    model, times = record["engines"]["int8"]["model"], record["engines"]["int8"]["latency"]
    file = bundle / FILES[model]
    flags = flags_of(bundle, model)
    packed = content.pop("verdicts")
    assert {name: unpacked(value, 64).tolist() for name, value in packed.items()} == {
        name: value.tolist() for name, value in flags.items()
    }
    assert content == {
        "schema": 3,
        "protocol": protocol,
        "protocol_hash": hashlib.sha256(text.encode()).hexdigest(),
        "artefact": {
            "file": file.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "precision": "int8",
        },
        "count": 64,
        "measured": {
            "bytes": file.stat().st_size,
            "compressed_bytes": None,
            "p50_ms": times["p50_ms"],
            "p99_ms": times["p99_ms"],
            "float_p50_ms": record["engines"]["fp32"]["latency"]["p50_ms"],
            "where": record["where"],
        },
    }


def test_two_runs_give_the_same_verdicts(python: Path, bundle: Path):
    found = []
    for folder in ("first", "second"):
        assert verify(python, bundle, "--out", folder).returncode == 0
        content = unseal((bundle.with_name(folder) / "edge.int8.json").read_bytes())
        del content["measured"]  # times differ
        found.append(content)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["json.py", "hashlib.py", "numpy.py", "onnxruntime.py"])
def test_a_file_beside_the_script_is_no_module(python: Path, bundle: Path, name: str):
    (bundle / name).write_text("open('taken', 'w').close()\n")
    result = verify(python, bundle)
    assert result.returncode == 65 and f"{name} missing, no plain file, or not" in result.stderr
    assert {path.name for path in bundle.parent.iterdir()} == {"net"}


def test_a_changed_script_is_not_run(python: Path, bundle: Path):
    path = bundle / "build_engine.py"
    path.write_text(f"open('taken', 'w').close()\n{path.read_text()}")
    result = verify(python, bundle)
    assert result.returncode == 65
    assert f"{path}: not the file that was shipped; fetch the bundle again" in result.stderr
    assert {path.name for path in bundle.parent.iterdir()} == {"net"}


def test_a_folder_that_cannot_be_written_is_told_at_once(python: Path, bundle: Path):
    bundle.parent.chmod(0o555)
    command = [str(python), str(bundle / "edge_verify.py")]
    result = run_bare(without_override(command), bundle.parent)
    bundle.parent.chmod(0o755)
    assert (result.returncode, result.stdout) == (73, "")
    edge = bundle.with_name("net.edge")
    assert result.stderr == (
        f"{edge}: cannot be created (Permission denied); give --out a folder of your own\n"
    )
    assert not edge.exists()
