"""Keeps one comment of a pull request up to date with what the gate says.

    python comment.py gate/gate.md

GitHub is asked through `gh api`, with the token in GH_TOKEN. The verdict is the gate's, not this
script's: where it may not write, as for pull requests of forks, it says so and ends well.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from deploy.gate_outputs import MARKER


class GitHubRefused(Exception):
    """What `gh` said instead of answering."""


def main() -> int:
    (path,) = map(Path, sys.argv[1:])
    repository = f"repos/{os.environ['GITHUB_REPOSITORY']}"
    try:
        if not path.is_file():
            return _say("notice", "the gate could not compare, so there is nothing to comment")
        number = _pull_request(repository)
        if number is None:
            return _say("notice", "no open pull request belongs to this, so there is no comment")
        _write(repository, number, path.read_text(encoding="utf-8"))
    except GitHubRefused as refusal:
        if "HTTP 403" in str(refusal):
            return _say(
                "notice",
                "this token may only read, as for pull requests of forks: no comment, see the "
                "summary of the job",
            )
        return _say("warning", f"no comment: {refusal}")
    return 0


def _pull_request(repository: str) -> int | None:
    """The number of the pull request that this run is for, or that the run before it was for."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    if "pull_request" in event:
        return int(event["pull_request"]["number"])
    if "workflow_run" not in event:
        return None
    run = event["workflow_run"]
    head = f"{run['head_repository']['owner']['login']}:{run['head_branch']}"
    # A fork's run does not name its pull request, and what its files say could name any other.
    found = _gh(f"{repository}/pulls?{urlencode({'state': 'open', 'head': head})}")
    return next((pull["number"] for pull in found if pull["head"]["sha"] == run["head_sha"]), None)


def _write(repository: str, number: int, body: str) -> None:
    comments = _gh(f"{repository}/issues/{number}/comments?per_page=100", "--paginate")
    ours = [
        comment["id"]
        for comment in comments
        # Anyone may write the marker; only what a program wrote is written over.
        if comment["body"].startswith(MARKER) and comment["user"]["type"] == "Bot"
    ]
    if ours:
        _gh(f"{repository}/issues/comments/{ours[0]}", "--method=PATCH", body=body)
    else:
        _gh(f"{repository}/issues/{number}/comments", "--method=POST", body=body)


def _gh(path: str, *options: str, body: str | None = None) -> list[Any]:
    """What GitHub answers; several pages come as one list after the other."""
    sent = [] if body is None else ["--input=-"]
    done = subprocess.run(
        ["gh", "api", path, *options, *sent],
        input=None if body is None else json.dumps({"body": body}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise GitHubRefused(" ".join(done.stderr.split()) or f"gh ended {done.returncode}")
    answers: list[Any] = []
    rest = done.stdout.strip()
    while rest:
        page, end = json.JSONDecoder().raw_decode(rest)
        answers += page if isinstance(page, list) else [page]
        rest = rest[end:].lstrip()
    return answers


def _say(level: str, message: str) -> int:
    sys.stdout.write(f"::{level} title=gate::{message}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
