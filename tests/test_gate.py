"""The gate tells better from worse by the images themselves, and refuses what it cannot compare."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verdict_files import PGD, SQUARE, N, example, health

from deploy import gate
from deploy.errors import DeployError
from deploy.gate import evaluate, main
from deploy.gate_pairs import compare, drop_from_float
from deploy.policies import Terms
from deploy.verdicts import write

ROOT = Path(__file__).parents[1]


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
    result = evaluate(example(worst, sha="b"), example(320), terms=Terms(margin=margin))
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
    for few, margin, status in (
        (4, 0.0, "INCONCLUSIVE"),
        (5, 0.0, "PASS"),
        (5, 0.0125, "INCONCLUSIVE"),
    ):
        assert evaluate(example(few), example(few), terms=Terms(margin=margin)).status == status


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (health(), "PASS", "evaluation: 42 checks"),
        (health(suspect=("H1", "H9")), "PASS", "42 checks, suspect: H1, H9"),
        (health("H5 no gradient"), "INCONCLUSIVE", "evaluation is invalid: H5 no gradient"),
    ],
)
def test_an_evaluation_that_cannot_be_believed_leaves_the_verdict_open(
    found: dict[str, Any], status: str, words: str
) -> None:
    result = evaluate(example(health=found), example())
    assert result.status == status
    assert words in result.lines[1]
    # Nor does it hide that something got worse.
    assert evaluate(example(200, health=found), example()).status == "FAIL"
    # That it was sound does not stand in for a comparison that was asked for.
    assert evaluate(example(health=found)).status == "INCONCLUSIVE"


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


def alone(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m deploy.gate` with the standard library and this source tree, nothing else."""
    program = (
        f"import sys, runpy; sys.path.append({str(ROOT)!r}); sys.argv[1:] = {list(arguments)!r}\n"
        "try: runpy.run_module('deploy.gate', run_name='__main__')\n"
        "finally: assert not {'numpy', 'torch', 'advprune'} & set(sys.modules)\n"
    )
    clean = {key: x for key, x in os.environ.items() if key != "CI" and "GITHUB" not in key}
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
        (["good.json", "--policy", "floor", "--floor", "0.7"], 0),
        (["good.json", "--policy", "floor"], 2),
        (["good.json", "--floor", "0.7"], 2),  # adds to regress, which compares
        (["good.json", "--update-baseline", "--reason", "why"], 2),
        ([*base, "good.json", "--ratio", "0.9"], 2),
        ([*base, "good.json", "--accept-regression"], 2),
        (["good.json", "--release", "base.json"], 0),
        ([*base, "good.json", "--release", "none.json"], 12),
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


def test_the_command_in_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    write(tmp_path / "v.json", example())
    arguments = ["--baseline", str(tmp_path / "b.json"), str(tmp_path / "v.json")]
    assert main([*arguments, "--update-baseline", "--reason", "first"]) == 0
    assert main(arguments) == gate.EXIT_CODES["PASS"]
    printed = capsys.readouterr().out
    for metric in ("clean", "pgd-ce@finetuned", "square"):
        assert f"  {metric} against baseline: " in printed


def test_small_drops_add_up_against_the_release() -> None:
    """Nine in a thousand a step: no step is stopped by the one before, the third by the release."""
    images = 1000

    def engine(right: int) -> Any:
        flags = [i < right for i in range(images)]
        attacks = [dict(SQUARE)]
        return replace(example(attacks=attacks), correct={"clean": flags, "square": flags})

    verdicts = [engine(900 - 9 * step) for step in range(4)]
    found = [evaluate(after, before, release=verdicts[0]) for before, after in pairwise(verdicts)]
    assert [result.status for result in found] == ["PASS", "FAIL", "FAIL"]
    statuses = {check.name: check.status for check in found[1].checks}
    assert statuses == {"worst against baseline": "PASS", "worst against release": "FAIL"}
    without = [evaluate(after, before).status for before, after in pairwise(verdicts)]
    assert without == ["PASS"] * 3


def test_another_release_protocol_is_refused() -> None:
    with pytest.raises(DeployError, match=r"with release: seed") as refusal:
        evaluate(example(), example(), release=example(seed=4))
    assert refusal.value.exit_code == 12


def test_another_precision_is_another_protocol() -> None:
    other = example(precision="fp16", sha="b")
    with pytest.raises(DeployError, match=r"precision \(fp16 there, int8 here\)") as refusal:
        evaluate(example(), other)
    assert refusal.value.exit_code == 12
    assert other.protocol_hash != example().protocol_hash
    assert len(drop_from_float(example(), other)) == 4
