"""What teams copy into their CI runs: every script is run by bash, as the CI would run it."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from verdict_files import example

from deploy.verdicts import write

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github/actions/gate/action.yml"
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.yml"))
WORKFLOWS = [*EXAMPLES, ACTION, *sorted((ROOT / ".github/workflows").glob("*.yml"))]
MARKER = "<!-- advprune-gate -->"

# Answers like GitHub, from a file of comments, and keeps a record of what it was asked.
GH = """#!{python}
import json, os, sys
from pathlib import Path
state, words = Path(os.environ["GH_STATE"]), sys.argv[1:]
method = next((w.partition("=")[2] for w in words if w.startswith("--method=")), "GET")
body = json.loads(sys.stdin.read())["body"] if "--input=-" in words else None
assert os.environ["GH_TOKEN"] == "the token"
with (state / "calls").open("a") as calls:
    calls.write(json.dumps([method, words[1], body]) + "\\n")
if method != "GET" and os.environ.get("GH_SAYS"):
    sys.exit(os.environ["GH_SAYS"])
comments = json.loads((state / "comments").read_text())
if words[1].split("?")[0].endswith("/pulls"):
    print((state / "pulls").read_text())
elif method == "GET":
    for comment in comments:  # a page each
        print(json.dumps([comment]))
else:
    if method == "POST":
        comments.append({{"id": 77, "user": {{"type": "Bot"}}, "body": body}})
        (state / "comments").write_text(json.dumps(comments))
    print("{{}}")
"""


def scripts(node: Any) -> list[str]:
    """Every `run:` and `script:` below a node."""
    if isinstance(node, list):
        return [text for item in node for text in scripts(item)]
    if not isinstance(node, dict):
        return []
    found: list[str] = []
    for key, value in node.items():
        if key in ("run", "script"):
            found += [value] if isinstance(value, str) else value
        else:
            found += scripts(value)
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_are_sound_and_take_nothing_from_expressions(path: Path) -> None:
    found = scripts(yaml.safe_load(path.read_text()))
    assert found or "comment" in path.name
    for script in found:
        assert "${{" not in script
        subprocess.run(["bash", "-n", "-c", script], check=True)


@dataclass
class Scratch:
    """A team's repository with advprune in it, and a GitHub that answers from files."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder.parent / "state"

    @property
    def action(self) -> Path:
        return self.folder / "tools/advprune/.github/actions/gate"

    def environment(self, **more: str) -> dict[str, str]:
        """As a runner sets it; nothing of the machine that tests but where programs are."""
        return {
            "PATH": f"{self.folder.parent / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.folder.parent),
            "CI": "true",
            "GH_STATE": str(self.state),
        } | more

    def calls(self) -> list[list[Any]]:
        """Every question to GitHub: method, path and body."""
        record = self.state / "calls"
        lines = record.read_text().splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def bash(self, script: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=dict(environment),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    made = Scratch(tmp_path / "repository")
    house = made.folder / "tools/advprune"
    nothing_else = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deploy", house / "deploy", ignore=nothing_else)
    shutil.copytree(ROOT / ".github", house / ".github", ignore=nothing_else)
    # A folder of the same name in the repository itself must not be taken for ours.
    (made.folder / "deploy").mkdir()
    (made.folder / "deploy/__init__.py").write_text("raise SystemExit('the wrong deploy')\n")
    for folder in ("baselines", "verdicts"):
        (made.folder / folder).mkdir()
    write(made.folder / "baselines/model.json", example())
    write(made.folder / "baselines/release.json", example())
    for name, verdicts in {
        "pass": example(sha="b"),
        "fail": example(300, sha="b"),
        "few": example(2, sha="b"),
        "other": example(seed=9),
    }.items():
        write(made.folder / f"verdicts/{name}.json", verdicts)
    write(made.folder / "baselines/few.json", example(2))
    made.state.mkdir()
    (made.state / "comments").write_text("[]")
    program(tmp_path / "bin/gh", GH.format(python=sys.executable))
    # Bare: not even the packages of this environment.
    program(tmp_path / "bin/python3", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    return made


@dataclass
class Ended:
    """How a composite action ended."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str


def run_action(scratch: Scratch, given: Mapping[str, str], event: Any, **environment: str) -> Ended:
    """The steps of the action that a shell can run, in the order and on the terms of a runner."""
    action = yaml.safe_load((scratch.action / "action.yml").read_text())
    assert set(given) <= set(action["inputs"])
    inputs = {name: entry.get("default", "") for name, entry in action["inputs"].items()}
    inputs |= given
    values = {"github.token": "the token"} | {f"inputs.{k}": v for k, v in inputs.items()}
    files = {name: scratch.state / name for name in ("output", "summary", "event")}
    files["event"].write_text(json.dumps(event))
    for name in ("output", "summary"):
        files[name].write_text("")
    code, log = 0, ""
    for step in action["runs"]["steps"]:
        condition = step.get("if", "success()")
        ours = "inputs.comment" not in condition or inputs["comment"] == "true"
        if "run" not in step or (code and "always()" not in condition) or not ours:
            continue
        assert step["shell"] == "bash"
        given_env = {
            key: re.sub(r"\$\{\{ (.+?) \}\}", lambda found: values[found[1]], text)
            for key, text in step["env"].items()
        }
        done = scratch.bash(
            step["run"],
            scratch.environment(
                GITHUB_ACTIONS="true",
                GITHUB_ACTION_PATH=str(scratch.action),
                GITHUB_REPOSITORY="team/model",
                GITHUB_OUTPUT=str(files["output"]),
                GITHUB_STEP_SUMMARY=str(files["summary"]),
                GITHUB_EVENT_PATH=str(files["event"]),
                **environment,
                **given_env,
            ),
        )
        code, log = code or done.returncode, log + done.stdout + done.stderr
    lines = files["output"].read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return Ended(code, log, outputs, files["summary"].read_text())


PULL = {"pull_request": {"number": 5}}


@pytest.mark.parametrize(
    ("name", "baseline", "code", "status"),
    [
        ("pass", "model", 0, "PASS"),
        ("fail", "model", 10, "FAIL"),
        ("few", "few", 11, "INCONCLUSIVE"),
    ],
)
def test_the_action_ends_as_the_gate_does(
    scratch: Scratch, name: str, baseline: str, code: int, status: str
) -> None:
    given = {"verdicts": f"verdicts/{name}.json", "baseline": f"baselines/{baseline}.json"}
    ended = run_action(scratch, given, PULL)
    assert ended.code == code, ended.log
    assert ended.outputs["status"] == status
    assert ("\n::error title=gate::" in ended.log) == (code != 0)
    assert ended.summary.startswith(f"{MARKER}\n### Gate: {status}")
    assert json.loads((scratch.folder / "gate/gate.json").read_text())["status"] == status
    files = {"gate.json", "gate.md", "junit.xml", "metrics.txt"}
    assert {path.name for path in (scratch.folder / "gate").iterdir()} == files
    assert scratch.calls() == []


def test_the_action_refuses_another_protocol_without_a_number(scratch: Scratch) -> None:
    given = {"verdicts": "verdicts/other.json", "baseline": "baselines/model.json"}
    ended = run_action(scratch, given | {"comment": "true"}, PULL)
    assert ended.code == 12
    assert "::error title=gate::gate: cannot compare with baseline: seed" in ended.log
    assert (ended.outputs, ended.summary) == ({}, "")
    assert "::notice title=gate::the gate could not compare" in ended.log
    assert scratch.calls() == []


def test_every_input_reaches_the_gate(scratch: Scratch) -> None:
    given = {
        "verdicts": "verdicts/fail.json",
        "baseline": "baselines/model.json",
        "release": "baselines/release.json",
        "policy": "regress ship",
        "margin": "0.2",
        "floor": "0.5",
        "ratio": "0.9",
        "float": "verdicts/fp32.json",
        "out": "some where",
    }
    fp32 = example(310, sha="c", precision="fp32")
    write(scratch.folder / "verdicts/fp32.json", fp32)
    ended = run_action(scratch, given, PULL)
    assert ended.code == 0, ended.log
    content = json.loads((scratch.folder / "some where/gate.json").read_text())
    assert content["policies"] == {"regress": 0.2, "ship": 0.2, "floor": 0.5, "ratio": 0.9}
    assert {row["against"] for row in content["rows"]} == {"baseline", "release", "fp32"}


def test_inputs_are_words_and_not_programs(scratch: Scratch) -> None:
    evil = "$(touch hacked); touch hacked #"
    for name in ("verdicts", "baseline", "policy", "margin", "floor"):
        given = {"verdicts": "verdicts/pass.json", "baseline": "baselines/model.json", name: evil}
        assert run_action(scratch, given, PULL).code in (2, 12, 66)
    assert not (scratch.folder / "hacked").exists()


def test_one_comment_is_made_and_then_kept_up_to_date(scratch: Scratch) -> None:
    # Someone who writes our marker is not us.
    theirs = {"id": 3, "user": {"type": "User"}, "body": f"{MARKER} mine"}
    (scratch.state / "comments").write_text(json.dumps([theirs]))
    given = {"baseline": "baselines/model.json", "comment": "true"}
    first = run_action(scratch, given | {"verdicts": "verdicts/fail.json"}, PULL)
    assert first.code == 10
    (_, post) = scratch.calls()
    assert post[:2] == ["POST", "repos/team/model/issues/5/comments"]
    assert post[2].startswith(f"{MARKER}\n### Gate: FAIL")
    second = run_action(scratch, given | {"verdicts": "verdicts/pass.json"}, PULL)
    assert second.code == 0
    (_, patch) = scratch.calls()
    assert patch[:2] == ["PATCH", "repos/team/model/issues/comments/77"]
    assert patch[2] == (scratch.folder / "gate/gate.md").read_text()


@pytest.mark.parametrize(
    ("says", "level"),
    [
        ("gh: Resource not accessible by integration (HTTP 403)", "notice"),
        ("gh: Server Error (HTTP 502)", "warning"),
    ],
)
def test_a_comment_that_cannot_be_written_changes_no_verdict(
    scratch: Scratch, says: str, level: str
) -> None:
    given = {"baseline": "baselines/model.json", "comment": "true"}
    for name, code in (("pass", 0), ("fail", 10)):
        ended = run_action(
            scratch, given | {"verdicts": f"verdicts/{name}.json"}, PULL, GH_SAYS=says
        )
        assert ended.code == code
        assert f"::{level} title=gate::" in ended.log


def test_a_later_run_finds_the_pull_request_of_a_fork(scratch: Scratch) -> None:
    head = {"head_repository": {"owner": {"login": "else"}}, "head_branch": "a&b", "head_sha": "f0"}
    pulls = [{"number": 8, "head": {"sha": "old"}}, {"number": 9, "head": {"sha": "f0"}}]
    (scratch.state / "pulls").write_text(json.dumps(pulls))
    given = {
        "verdicts": "verdicts/pass.json",
        "baseline": "baselines/model.json",
        "comment": "true",
    }
    assert run_action(scratch, given, {"workflow_run": head}).code == 0
    asked, _, post = scratch.calls()
    assert asked[1] == "repos/team/model/pulls?state=open&head=else%3Aa%26b"
    assert post[1] == "repos/team/model/issues/9/comments"
    (scratch.state / "pulls").write_text("[]")
    for event in ({"workflow_run": head}, {"push": {}}):
        ended = run_action(scratch, given, event)
        assert ended.code == 0
        assert "::notice title=gate::no open pull request" in ended.log


# The examples -----------------------------------------------------------------------------------


def pretend_pipeline(scratch: Scratch, code: int) -> None:
    """`make setup` and `advprune run` in their places; the run leaves verdicts and a code."""
    program(
        scratch.folder.parent / "bin/make", '#!/bin/sh\ntest "$*" = "-C tools/advprune setup"\n'
    )
    program(
        scratch.folder / "tools/advprune/.venv/bin/advprune",
        '#!/bin/sh\ntest "$*" = "run --recipe recipe.toml" || exit 2\n'
        "mkdir -p runs/latest/07_verify\n"
        "cp verdicts/pass.json runs/latest/07_verify/verdicts.int8.json\n"
        f"exit {code}\n",
    )


@pytest.mark.parametrize(("ran", "code"), [(0, 0), (10, 0), (11, 0), (65, 65)])
def test_the_github_example_gates_what_its_run_left(scratch: Scratch, ran: int, code: int) -> None:
    jobs = yaml.safe_load((ROOT / "docs/examples/gate-github.yml").read_text())["jobs"]
    pretend_pipeline(scratch, ran)
    found = [scratch.bash(s, scratch.environment()).returncode for s in scripts(jobs["verdicts"])]
    assert found == [0, code]
    if code == 0:
        ended = run_action(scratch, gate_inputs(jobs["gate"]), PULL)
        assert (ended.code, ended.outputs["status"]) == (0, "PASS")


def test_the_github_comment_example_runs_nothing_of_the_fork(scratch: Scratch) -> None:
    path = ROOT / "docs/examples/gate-github-comment.yml"
    job = yaml.safe_load(path.read_text())["jobs"]["comment"]
    assert scripts(job) == []
    checkout = next(step for step in job["steps"] if "checkout" in step["uses"])
    assert "ref" not in checkout["with"]
    shutil.copy(
        scratch.folder / "verdicts/fail.json", scratch.folder / "verdicts/verdicts.int8.json"
    )
    assert run_action(scratch, gate_inputs(job), PULL).code == 10


def gate_inputs(job: Any) -> dict[str, str]:
    """What a job hands to the action, as the runner does: text."""
    step = next(s for s in job["steps"] if s["uses"] == "./tools/advprune/.github/actions/gate")
    return {key: json.dumps(v) if v is True else v for key, v in step["with"].items()}


@pytest.mark.parametrize(("name", "code"), [("pass", 0), ("fail", 10), ("other", 12)])
def test_the_gitlab_example_reports_what_it_finds(scratch: Scratch, name: str, code: int) -> None:
    jobs = yaml.safe_load((ROOT / "docs/examples/gate-gitlab.yml").read_text())
    pretend_pipeline(scratch, 10)
    made = scratch.bash("\n".join(jobs["verdicts"]["script"]), scratch.environment())
    assert made.returncode == 0, made.stderr
    folder = scratch.folder
    shutil.copy(folder / f"verdicts/{name}.json", folder / "verdicts/verdicts.int8.json")
    done = scratch.bash("\n".join(jobs["gate"]["script"]), scratch.environment())
    assert done.returncode == code, done.stderr
    reports = jobs["gate"]["artifacts"]["reports"]
    assert set(reports) == {"junit", "metrics"}
    assert all((folder / file).is_file() == (code != 12) for file in reports.values())
