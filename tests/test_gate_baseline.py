"""A baseline changes for a reason, on a desk, and never for the worse without being told to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from verdict_files import costs, example, health

from deploy.errors import DeployError
from deploy.gate import evaluate
from deploy.gate_baseline import update_baseline
from deploy.sealed import seal, unseal
from deploy.verdicts import read, write


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is not CI, wherever these tests run."""
    monkeypatch.delenv("CI", raising=False)


@pytest.mark.usefixtures("desk")
def test_a_baseline_remembers_why_and_what_was_before(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert "worst: none → 80.0 %" in update_baseline(path, example(), "first")
    assert read(path) == replace(example(), reason="first")
    changed = update_baseline(path, example(300, sha="b"), " smaller net ", True)
    assert "worst: 80.0 % → 75.0 %" in changed
    assert "clean: 97.5 % → 97.5 %" in changed
    new = read(path)
    assert new.reason == "smaller net"
    assert new.previous is not None
    assert new.previous["artefact"]["sha256"] == "a" * 64
    assert new.previous["accuracy"]["worst"] == 0.8
    assert evaluate(example(300), read(path)).status == "PASS"
    for key, value in (("accuracy", {"worst": 2}), ("protocol_hash", 3), ("artefact", {})):
        content = unseal(path.read_bytes())
        content["previous"][key] = value
        (tmp_path / "off.json").write_bytes(seal(content))
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


@pytest.mark.usefixtures("desk")
def test_the_same_again_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, example(measured=costs()), "first")
    before = path.read_bytes()
    # Another time on the clock is not another engine.
    assert update_baseline(path, example(measured=costs(p50_ms=0.09)), "again").endswith(
        ": unchanged"
    )
    assert path.read_bytes() == before
    for other in (example(sha="b"), example(seed=1), example(321)):
        assert "unchanged" not in update_baseline(tmp_path / "b.json", other, "x", True)


@pytest.mark.usefixtures("desk")
def test_a_worse_one_must_be_meant(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, example(), "first")
    before = path.read_bytes()
    with pytest.raises(DeployError, match=r"80\.0 % → 79\.8 %.*--accept-regression") as refusal:
        update_baseline(path, example(319, sha="b"), "smaller")
    assert refusal.value.exit_code == 10
    assert path.read_bytes() == before
    # Under another protocol the two numbers do not compare, and neither is worse.
    assert "80.0 % → 25.0 %" in update_baseline(path, example(100, seed=1), "stronger attacks")


@pytest.mark.usefixtures("desk")
def test_the_diff_names_size_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, example(measured=costs()), "first")
    lines = update_baseline(
        path, example(seed=7, precision="fp16", measured=costs(bytes=90_000)), "half"
    ).splitlines()
    assert "  bytes: 100000 → 90000" in lines
    assert "  protocol: precision (int8 there, fp16 here)" in lines
    assert "  protocol: seed (0 there, 7 here)" in lines
    assert "  bytes: 90000 → unknown" in update_baseline(path, example(), "whole").splitlines()


@pytest.mark.usefixtures("desk")
def test_an_outdated_baseline_can_be_replaced_and_a_foreign_file_not(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(example().to_dict() | {"schema": 1}))
    update_baseline(path, example(), "schema 3")
    assert read(path) == replace(example(), reason="schema 3")
    foreign = tmp_path / "package.json"
    foreign.write_text('{"name": "mine"}')
    with pytest.raises(DeployError) as refusal:
        update_baseline(foreign, example(), "x")
    assert refusal.value.exit_code == 65
    assert foreign.read_text() == '{"name": "mine"}'
    damaged = seal(example().to_dict()).replace(b'"schema": 3', b'"schema": 2')
    foreign.write_bytes(damaged)  # one bit, which must not make it an outdated one
    with pytest.raises(DeployError, match="digest"):
        update_baseline(foreign, example(), "x")
    write(foreign, example())  # verdicts without a reason may be replaced: they are ours
    assert "updated" in update_baseline(foreign, example(seed=2), "x")


@pytest.mark.usefixtures("desk")
def test_what_cannot_be_believed_is_no_baseline(tmp_path: Path) -> None:
    path, unsound = tmp_path / "baseline.json", example(health=health("H5 no gradient"))
    with pytest.raises(DeployError, match="H5 no gradient; a baseline must be believed") as refusal:
        update_baseline(path, unsound, "first")
    assert refusal.value.exit_code == 11 and not path.exists()
    update_baseline(path, example(health=health(suspect=("H9",))), "first")
    assert read(path).health == health(suspect=("H9",))


@pytest.mark.usefixtures("desk")
def test_the_first_baseline_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "baselines" / "edge" / "model.json"
    update_baseline(path, example(), "first")
    assert read(path).reason == "first"
    with pytest.raises(DeployError, match="cannot be created") as refusal:
        update_baseline(path / "within.json", example(), "first")
    assert refusal.value.exit_code == 73
