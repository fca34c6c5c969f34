"""The gate tells better from worse by the images themselves, and refuses what it cannot compare."""

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import gate, verdicts
from deploy.errors import DeployError
from deploy.gate import compare, drop_from_float, evaluate, main, update_baseline
from deploy.outcome import Check
from deploy.verdicts import Verdicts, pack, protocol_hash, read, unpack, write

ROOT = Path(__file__).parents[1]
N = 400
PGD = {"name": "pgd-ce@finetuned", "steps": 20}
SQUARE = {"name": "square", "queries": 9}


def example(worst: int = 320, sha: str = "a", precision: str = "int8", **protocol: Any) -> Verdicts:
    """400 images: 390 right clean, the first `worst` of them right under the second attack."""
    return Verdicts(
        protocol={
            "data": "d" * 64,
            "images": "e" * 64,
            "labels": "f" * 64,
            "threat": {"norm": "linf", "eps": 0.15, "low": 0.0, "high": 1.0},
            "attacks": [dict(PGD), dict(SQUARE)],
            "seed": 0,
            "input": "float32 NCHW [0,1]",
        }
        | protocol,
        artefact={"file": f"model.{precision}.onnx", "sha256": sha * 64, "precision": precision},
        correct={
            "clean": [i < 390 for i in range(N)],
            "pgd-ce@finetuned": [i < 350 for i in range(N)],
            "square": [i < worst for i in range(N)],
        },
    )


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.booleans(), max_size=70))
def test_packing_is_numpys_and_comes_back(flags: list[bool]) -> None:
    assert base64.b64decode(pack(flags)) == np.packbits(np.array(flags, dtype=bool)).tobytes()
    assert unpack(pack(flags), len(flags)) == flags


@pytest.mark.parametrize("packed", ["gA", "gA==\n", "gB==", "gP==", "gAA=", "wA==", "ä"])
def test_another_encoding_of_the_bits_is_refused(packed: str) -> None:
    assert unpack("gA==", 1) == [True]
    with pytest.raises(ValueError, match=r".+"):
        unpack(packed, 1)


def test_verdicts_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.int8.json"
    write(path, example())
    assert read(path) == example()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    content = json.loads(path.read_text())
    assert content["count"] == N
    assert content["protocol_hash"] == protocol_hash(content["protocol"])
    bits = np.unpackbits(np.frombuffer(base64.b64decode(content["verdicts"]["worst"]), np.uint8))
    assert bits[:N].tolist() == [int(i < 320) for i in range(N)]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "verdicts.json"
    write(path, example())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeployError, match="No space left") as refusal:
        write(path, example(worst=0))
    assert refusal.value.exit_code == 74
    assert read(path) == example()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be created") as refusal:
        write(tmp_path / "absent" / "verdicts.json", example())
    assert refusal.value.exit_code == 73


def _put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def _rehash(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def changed(content: dict[str, Any]) -> None:
        change(content)
        content["protocol_hash"] = protocol_hash(content["protocol"])

    return changed


OFF: dict[str, Callable[[dict[str, Any]], Any]] = {
    "schema": _put("schema", value=2),
    "schema as a boolean": _put("schema", value=True),
    "unknown key": _put("extra", value=1),
    "missing key": lambda content: content.pop("artefact"),
    "half a baseline": _put("reason", value="because"),
    "count": _put("count", value=N - 8),
    "count of one more": _put("count", value=N + 1),
    "no images": _put("count", value=0),
    "count as text": _put("count", value="400"),
    "hash": _put("protocol_hash", value="0" * 64),
    "another seed under the old hash": _put("protocol", "seed", value=1),
    "seed": _rehash(_put("protocol", "seed", value=0.5)),
    "eps": _rehash(_put("protocol", "threat", "eps", value="0.15")),
    "eps beyond floats": _rehash(_put("protocol", "threat", "eps", value=10**400)),
    "threat": _rehash(_put("protocol", "threat", value={"norm": "linf"})),
    "data": _rehash(_put("protocol", "data", value="D" * 64)),
    "attacks": _rehash(_put("protocol", "attacks", value={"name": "square"})),
    "attack without a name": _rehash(_put("protocol", "attacks", 0, value={"steps": 1})),
    "attack in two lines": _rehash(_put("protocol", "attacks", 0, "name", value="a\nb")),
    "attack called worst": _rehash(_put("protocol", "attacks", 0, "name", value="worst")),
    "attack twice": _rehash(_put("protocol", "attacks", 0, "name", value="square")),
    "attack without verdicts": lambda content: content["verdicts"].pop("square"),
    "verdicts without an attack": _put("verdicts", "apgd", value=pack([True] * N)),
    "artefact": _put("artefact", "sha256", value="a" * 63),
    "no base64": _put("verdicts", "clean", value="!" * 68),
    "verdicts as a number": _put("verdicts", "clean", value=1),
    "worst": _put("verdicts", "worst", value=pack([True] * N)),
    "clean left out of worst": _put("verdicts", "clean", value=pack([False] * N)),
}


@pytest.mark.parametrize("what", OFF)
def test_a_file_that_is_off_is_refused_in_one_line(tmp_path: Path, what: str) -> None:
    content = example().to_dict()
    OFF[what](content)
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DeployError) as refusal:
        read(path)
    assert refusal.value.exit_code == 65
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_padding_bits_must_be_zero(tmp_path: Path) -> None:
    odd = replace(example(), correct={k: v[:397] for k, v in example().correct.items()})
    content = odd.to_dict()
    raw = bytearray(base64.b64decode(content["verdicts"]["clean"]))
    raw[-1] |= 1
    content["verdicts"]["clean"] = base64.b64encode(raw).decode()
    (tmp_path / "v.json").write_text(json.dumps(content))
    with pytest.raises(DeployError, match="padding"):
        read(tmp_path / "v.json")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 100_000, b'{"schema":1,"schema":1}']
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "verdicts.json"
    path.write_bytes(content)
    with pytest.raises(DeployError) as refusal:
        read(path)
    assert refusal.value.exit_code == 65
    assert len(str(refusal.value).splitlines()) == 1


def test_a_huge_file_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "verdicts.json"
    with path.open("wb") as file:
        file.truncate(verdicts.LARGEST_FILE + 1)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("was parsed"))
    with pytest.raises(DeployError, match="larger") as refusal:
        read(path)
    assert refusal.value.exit_code == 65


def test_a_missing_file_is_another_refusal(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DeployError) as refusal:
            read(path)
        assert refusal.value.exit_code == 66


@pytest.mark.parametrize(
    "change", [{"artefact": {"file": "x"}}, {"correct": {"clean": [True], "square": [True, False]}}]
)
def test_verdicts_that_are_off_are_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DeployError) as refusal:
        write(tmp_path / "v.json", replace(example(), **change))
    assert refusal.value.exit_code == 65
    assert not list(tmp_path.iterdir())


def test_the_counts_are_those_of_the_images() -> None:
    random = np.random.default_rng(0)
    here, there = random.random((2, 3, N)) < 0.8
    names = list(example().correct)
    candidate = replace(example(), correct=dict(zip(names, here.tolist(), strict=True)))
    baseline = replace(example(), correct=dict(zip(names, there.tolist(), strict=True)))
    rows = {row.metric: row for row in compare(candidate, baseline, "baseline")}
    assert list(rows) == ["worst", *names]
    a, b = here.all(0), there.all(0)
    assert rows["worst"].worse == (b & ~a).sum()
    assert rows["worst"].better == (a & ~b).sum()
    assert rows["worst"].drop == pytest.approx(b.mean() - a.mean(), abs=1e-12)
    assert rows["clean"].before == pytest.approx(there[0].mean())
    assert rows["clean"].after == pytest.approx(here[0].mean())


@pytest.mark.parametrize(
    ("worst", "margin", "status"),
    [
        (320, 0.01, "PASS"),
        (330, 0.01, "PASS"),
        (316, 0.01, "PASS"),  # drop of exactly the margin
        (316, 0.009, "PASS"),  # four images: chance explains them
        (315, 0.01, "FAIL"),  # five, p = 1/32
        (300, 0.01, "FAIL"),
        (300, 0.05, "PASS"),  # significant, and nobody minds
    ],
)
def test_it_fails_above_the_margin_and_beyond_chance(
    worst: int, margin: float, status: str
) -> None:
    result = evaluate(example(worst, sha="b"), example(320), margin=margin)
    assert result.status == status
    assert result.primary is not None
    assert result.primary.drop == pytest.approx((320 - worst) / N)
    assert "worst against baseline" in result.lines[0]


def test_only_the_primary_metric_decides() -> None:
    candidate = example(sha="b")
    candidate.correct["clean"] = [i < 330 for i in range(N)]
    result = evaluate(candidate, example())
    rows = {row.metric: row for row in result.rows}
    assert rows["clean"].drop == 0.15
    assert result.status == "PASS"


def test_without_a_baseline_the_float_engine_decides() -> None:
    fp32 = example(330, sha="b", precision="fp32")
    result = evaluate(example(300), reference=fp32)
    assert result.status == "FAIL"
    assert result.primary == drop_from_float(example(300), fp32)[0]
    assert evaluate(example(329), reference=fp32).status == "PASS"
    both = evaluate(example(300), baseline=example(300, sha="c"), reference=fp32)
    assert both.status == "PASS"
    assert [row.against for row in both.rows] == ["baseline"] * 4 + ["fp32"] * 4


def test_a_gate_that_cannot_fail_does_not_pass() -> None:
    assert evaluate(example()).status == "INCONCLUSIVE"
    assert evaluate(example(3), example(3)).status == "INCONCLUSIVE"
    assert evaluate(example(4), example(4), margin=0).status == "INCONCLUSIVE"
    assert evaluate(example(5), example(5), margin=0).status == "PASS"
    assert evaluate(example(5), example(5), margin=0.0125).status == "INCONCLUSIVE"


def test_checks_of_the_caller_count() -> None:
    good, bad = Check("parity", "PASS", "parity: 100 %"), Check("size", "FAIL", "size: too large")
    unsure = Check("health", "INCONCLUSIVE", "health: no gradient")
    assert evaluate(example(), checks=[good]).status == "PASS"
    assert evaluate(example(), example(), checks=[good, unsure]).status == "INCONCLUSIVE"
    result = evaluate(example(), example(), checks=[unsure, bad])
    assert result.status == "FAIL"
    assert result.lines[1:3] == ["health: no gradient", "size: too large"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed (0 there, 1 here)"),
        ({"data": "0" * 64}, "data"),
        ({"input": "uint8 NHWC"}, "input"),
        ({"threat": {"norm": "linf", "eps": 0.1, "low": 0, "high": 1.0}}, "threat.eps (0.15 there"),
        (
            {"attacks": [PGD | {"steps": 5}, SQUARE]},
            "attacks.pgd-ce@finetuned.steps (20 there, 5 here)",
        ),
        (
            {"attacks": [SQUARE, PGD]},
            "attacks (['pgd-ce@finetuned', 'square'] there",
        ),
        ({"attacks": [SQUARE | {"p": None}]}, "attacks.square.p (absent"),
    ],
)
def test_other_protocols_are_not_compared(change: dict[str, Any], named: str) -> None:
    with pytest.raises(DeployError) as refusal:
        evaluate(example(**change), example())
    assert refusal.value.exit_code == 12
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_else_cannot_be_compared() -> None:
    short = replace(example(), correct={k: v[:-1] for k, v in example().correct.items()})
    fp32 = example(precision="fp32", sha="b")
    for compared in (
        lambda: evaluate(short, example()),
        lambda: evaluate(example(), fp32),
        lambda: drop_from_float(example(), example()),
        lambda: drop_from_float(example(seed=3), fp32),
    ):
        with pytest.raises(DeployError) as refusal:
            compared()
        assert refusal.value.exit_code == 12
    with pytest.raises(DeployError, match=r"did you mean 0\.01\?") as refusal:
        evaluate(example(), example(), margin=1)
    assert refusal.value.exit_code == 2


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is not CI, wherever these tests run."""
    monkeypatch.delenv("CI", raising=False)


@pytest.mark.usefixtures("desk")
def test_a_baseline_remembers_why_and_what_was_before(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert "none → 80.0 %" in update_baseline(path, example(), "first")
    assert read(path) == replace(example(), reason="first")
    assert "80.0 % → 75.0 %" in update_baseline(path, example(300, sha="b"), " smaller net ")
    new = read(path)
    assert new.reason == "smaller net"
    assert new.previous is not None
    assert new.previous["artefact"]["sha256"] == "a" * 64
    assert new.previous["accuracy"]["worst"] == 0.8
    assert evaluate(example(300), read(path)).status == "PASS"
    for key, value in (("accuracy", {"worst": 2}), ("protocol_hash", 3), ("artefact", {})):
        content = json.loads(path.read_text())
        content["previous"][key] = value
        (tmp_path / "off.json").write_text(json.dumps(content))
        with pytest.raises(DeployError, match="previous"):
            read(tmp_path / "off.json")


@pytest.mark.parametrize("value", ["true", "1", "True"])
def test_ci_does_not_accept_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(DeployError, match="CI") as refusal:
        update_baseline(tmp_path / "baseline.json", example(), "please")
    assert refusal.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("desk")
def test_a_baseline_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="reason") as refusal:
        update_baseline(tmp_path / "baseline.json", example(), "  ")
    assert refusal.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_the_three_files_say_the_same(tmp_path: Path) -> None:
    candidate = example(300, sha="b", attacks=[{"name": "a|`<b>&", "steps": 1}])
    baseline = example(attacks=[{"name": "a|`<b>&", "steps": 1}])
    for side in (candidate, baseline):
        side.correct["a|`<b>&"] = side.correct.pop("square")
        del side.correct["pgd-ce@finetuned"]
    unsure = Check("health", "INCONCLUSIVE", "health: <none>")
    result = evaluate(candidate, baseline, checks=[unsure, Check("size", "PASS", "size: fine")])
    result.write(tmp_path)
    content = json.loads((tmp_path / "gate.json").read_text())
    assert content["status"] == "FAIL"
    assert content["primary"] == content["rows"][0]
    assert content["primary"]["worse"] == 20
    assert content["primary"]["p"] == 2**-20
    assert content["lines"] == result.lines
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.attrib == {"tests": "3", "failures": "1", "errors": "1"}
    cases = suites.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["worst against baseline", "health", "size"]
    assert [[child.tag for child in case] for case in cases] == [["failure"], ["error"], []]
    assert cases[0][0].get("message") == result.lines[0]
    text = (tmp_path / "gate.md").read_text()
    assert "### Gate: FAIL" in text
    assert "`a\\|'<b>&`" in text
    assert "health: &lt;none&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {9}


def alone(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m deploy.gate` with the standard library and this source tree, nothing else."""
    program = (
        f"import sys, runpy; sys.path.append({str(ROOT)!r}); sys.argv[1:] = {list(arguments)!r}\n"
        "try: runpy.run_module('deploy.gate', run_name='__main__')\n"
        "finally: assert not {'numpy', 'torch', 'advprune'} & set(sys.modules)\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "CI"}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_exit_codes_without_any_package(tmp_path: Path) -> None:
    write(tmp_path / "good.json", example())
    write(tmp_path / "bad.json", example(300, sha="b"))
    write(tmp_path / "other.json", example(seed=5))
    write(tmp_path / "few.json", example(2))
    (tmp_path / "torn.json").write_bytes((tmp_path / "good.json").read_bytes()[:-9])
    base = ["--baseline", "base.json"]
    update = [*base, "good.json", "--update-baseline"]

    missing = alone(tmp_path, *base, "good.json")
    assert (missing.returncode, missing.stdout) == (12, "")
    assert "--update-baseline" in missing.stderr
    assert alone(tmp_path, *update).returncode == 2
    assert alone(tmp_path, *update, "--reason", "why", CI="true").returncode == 2
    assert not (tmp_path / "base.json").exists()
    assert alone(tmp_path, *update, "--reason", "first").returncode == 0

    good = alone(tmp_path, *base, "good.json", "--out", ".")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("gate PASS\n")
    assert json.loads((tmp_path / "gate.json").read_text())["status"] == "PASS"
    bad = alone(tmp_path, *base, "bad.json")
    assert bad.returncode == 10
    assert bad.stdout.startswith("gate FAIL\n")
    assert alone(tmp_path, *base, "bad.json", "--margin", "0.1").returncode == 0
    assert alone(tmp_path, "--baseline", "few.json", "few.json").returncode == 11
    other = alone(tmp_path, *base, "other.json")
    assert (other.returncode, other.stdout) == (12, "")
    assert "seed (0 there, 5 here)" in other.stderr
    for arguments, code in (
        ([*base, "torn.json"], 65),
        (["--baseline", "torn.json", "good.json"], 65),
        ([*base, "absent.json"], 66),
        ([*base, "good.json", "--margin", "5"], 2),
        (["good.json"], 2),
        ([*base, "good.json", "--reason", "why"], 2),
        ([*base, "good.json", "--out", "absent"], 73),
    ):
        refused = alone(tmp_path, *arguments)
        assert refused.returncode == code, refused
        assert "Traceback" not in refused.stderr


def test_a_log_that_cannot_show_arrows_still_gets_the_verdict(tmp_path: Path) -> None:
    write(tmp_path / "v.json", example())
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy.gate",
            "--baseline",
            tmp_path / "v.json",
            tmp_path / "v.json",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"gate PASS\n")


@pytest.mark.usefixtures("desk")
def test_the_command_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "v.json", example())
    arguments = ["--baseline", str(tmp_path / "b.json"), str(tmp_path / "v.json")]
    assert main([*arguments, "--update-baseline", "--reason", "first"]) == 0
    assert main(arguments) == gate.EXIT_CODES["PASS"]
    printed = capsys.readouterr().out
    for metric in ("clean", "pgd-ce@finetuned", "square"):
        assert f"  {metric}: " in printed
