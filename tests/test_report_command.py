"""What a report tells one to type gives the run again, and `advprune report` shows the page."""

import json
import shlex
import shutil
import subprocess
import webbrowser
from pathlib import Path
from typing import Any

import pytest
import torch
from page_tags import Page
from tiny_run import Tiny, advprune, refusal

from advprune.files import write
from deploy.sealed import seal, unseal
from pipeline.files import sha256
from pipeline.provenance import provenance
from pipeline.stage import MANIFEST

pytest_plugins = ["tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("clean_environment")


def typed(report: dict[str, Any]) -> list[str]:
    name, *words = shlex.split(report["command"])
    assert name == "advprune"
    return words


def test_what_is_to_be_typed_finds_every_stage_of_the_run(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shared run was copied after it was made, so that its words name the original.
    words = typed(tiny.report)
    assert words[:2] == ["run", "--recipe"] and words[3] == "--runs"
    original = Path(words[4])
    assert words[2] == f"{original}/{tiny.run.name}/recipe.toml"
    monkeypatch.chdir(tiny.runs.parent)
    for runs in (str(tiny.runs), tiny.runs.name):
        words[2], words[4] = f"{runs}/{tiny.run.name}/recipe.toml", runs
        before = tiny.store
        again = advprune(*words)
        assert again.code == tiny.result.code
        assert "nothing to do" in again.out
        assert tiny.store == before


def test_a_run_in_the_usual_folder_needs_no_word_for_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it was started; a name that a shell would split comes whole."""
    monkeypatch.chdir(tmp_path)
    for runs, told in (("runs", False), ("my runs", True)):
        shutil.copytree(tiny.runs, tmp_path / runs, symlinks=True)
        for stage in ("report", "bundle"):
            shutil.rmtree(tmp_path / runs / "store" / tiny.artefact(stage).name)
        recipe = f"{runs}/{tiny.run.name}/recipe.toml"
        report = advprune("run", "--recipe", recipe, "--runs", runs, "--json").json
        expected = ["run", "--recipe", recipe, *(["--runs", runs] if told else [])]
        assert typed(report) == expected
        assert "nothing to do" in advprune(*typed(report)).out
        page = Page((tmp_path / recipe).with_name("report.html").read_text())
        assert page.lines("command") == [report["command"]]


def test_the_report_says_what_the_bits_depend_on(tiny: Tiny) -> None:
    environment = tiny.report["environment"]
    assert environment["torch"] == torch.__version__ and environment["threads"] == 1
    here = provenance()
    assert here.keys() <= environment.keys()
    for key in ("advprune", "lock"):  # a commit may have been made since the run
        assert environment.get(key) == here.get(key)
    assert (tiny.run / "report.md").read_text().count(environment["lock"]) == 1
    assert not [note for note in tiny.report["notes"] if note.startswith("made with")]


def test_stages_that_other_code_made_are_named(tiny: Tiny, tmp_path: Path) -> None:
    runs = shutil.copytree(tiny.runs, tmp_path / "runs", symlinks=True)
    for stage in ("standard", "prune"):
        path = runs / "store" / tiny.artefact(stage).name / MANIFEST
        manifest = unseal(path.read_bytes())
        manifest["environment"] |= {"commit": "0ld"}
        write(path, seal(manifest))
    shutil.rmtree(runs / "store" / tiny.artefact("report").name)
    words = ["--recipe", runs / tiny.run.name / "recipe.toml", "--runs", runs]
    notes = advprune("run", *words, "--json").json["notes"]
    assert [note for note in notes if note.startswith("made with")] == [
        "made with commit 0ld: standard, prune"
    ]


def test_layers_are_in_the_order_of_the_network(tiny: Tiny) -> None:
    names = [layer["name"] for layer in tiny.report["sparsity"]["layers"]]
    assert names[0] == "network.conv1.weight" and names[-1] == "network.linear.weight"
    blocks = [name for name in names if ".blocks." in name]
    assert [name.split(".")[2] for name in blocks] == sorted(n.split(".")[2] for n in blocks)


def test_the_gallery_is_that_of_the_verification(tiny: Tiny) -> None:
    found = json.loads((tiny.artefact("verify") / "verification.json").read_text())["gallery"]
    told = tiny.report["gallery"]
    assert told["counts"] == found["counts"]
    assert told["counts"]["broken"] > 0
    engines = {engine["name"]: engine for engine in tiny.report["engines"]}
    lost = engines["int8"]["clean"]["value"] - engines["int8"]["worst"]["value"]
    assert told["counts"]["broken"] == round(lost * tiny.report["images"])
    assert [item["label"] for item in told["items"]] == [str(i["label"]) for i in found["items"]]
    page = (tiny.run / "report.html").read_text()
    pictures = sum(1 if item["attack"] is None else 3 for item in told["items"])
    assert page.count("<img ") == pictures > 0
    assert len(page) < 1_000_000


def test_the_page_is_opened_where_there_is_a_browser(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: not opened.append(address))
    page = (tiny.run / "report.html").resolve()
    shown = advprune("report", tiny.run, "--open")
    assert (shown.code, opened) == (0, [page.as_uri()])
    assert shown.out.endswith(f"{tiny.run}/report.html\n")
    assert advprune("report", tiny.run, "--open", "--json").json == tiny.report
    assert len(opened) == 2
    advprune("report", tiny.run)
    assert len(opened) == 2, "not without being asked"
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    without = advprune("report", tiny.run, "--open")
    assert without.code == 69 and without.err.count("\n") == 1
    assert f"{tiny.run}/report.html: found no browser" in without.err


def test_a_page_that_was_changed_is_not_opened(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: pytest.fail("opened"))
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    (place,) = run.glob("[0-9][0-9]_report")
    (place / "report.html").write_text("<p>PASS")
    refused = advprune("report", run, "--open")
    assert refused.code == 65 and "report.html: missing or changed" in refused.err


def test_a_report_of_an_older_run_says_to_run_again(tiny: Tiny, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny.run, tmp_path / "run"))
    (place,) = run.glob("[0-9][0-9]_report")
    older = json.dumps(tiny.report | {"schema": 1}).encode()
    write(place / "report.json", older)
    manifest = unseal((place / MANIFEST).read_bytes())
    manifest["files"]["report.json"]["sha256"] = sha256(place / "report.json")
    write(place / MANIFEST, seal(manifest))
    message = refusal(advprune("report", run), 65)
    said = "its report: schema is 1, and 2 is known; run the pipeline again"
    assert message.endswith(said) and message != said
    assert advprune("report", run, "--json").code == 65


def test_code_is_named_by_its_commit_in_its_own_checkout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIT_DIR", raising=False)
    outside = provenance(tmp_path)
    assert outside.keys() == {"advprune"}

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    git("init", "-q")
    assert provenance(tmp_path) == outside, "no commit yet"
    lock = tmp_path / "requirements/run.txt"
    lock.parent.mkdir()
    lock.write_text("torch==2\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v1")
    known = provenance(tmp_path)
    assert known["commit"] == git("rev-parse", "HEAD")
    assert known["lock"] == f"sha256 {sha256(lock)} of requirements/run.txt"
    lock.write_text("torch==3\n")
    assert provenance(tmp_path)["commit"] == f"{known['commit']}-dirty"
    (tmp_path / "site-packages").mkdir()
    assert provenance(tmp_path / "site-packages") == outside, "the commit of another project"
    monkeypatch.setenv("PATH", "")
    assert "commit" not in provenance(tmp_path), "where there is no git"
