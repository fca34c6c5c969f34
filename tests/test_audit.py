"""Promise: the audit passes only if every locked release was looked up by who reports the canary.

pip-audit itself asks a service on this machine, which knows what a test tells it.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import advisories
import audit
import pytest
from locks import ROOT, locks, read_lock
from waivers import WaiverError, read_waivers

TODAY = datetime.date(2026, 3, 1)
CANARY = advisories.CANARY
KNOWN: dict[tuple[str, str], list[str]] = {CANARY: ["PYSEC-2018-66", "CVE-2018-1000656"]}
DIGEST = "0" * 64
LOCK = f"""\
alpha==1.0 \\
    --hash=sha256:{DIGEST}
    # via advprune (pyproject.toml)
beta==2.0 ; sys_platform == 'win32' \\
    --hash=sha256:{DIGEST}
gamma==3.1 ; python_full_version < '3.12' \\
    --hash=sha256:{DIGEST} \\
    --hash=sha256:{DIGEST}
    # via
    #   alpha
    #   beta
"""
LATER = f"gamma==3.2 ; python_full_version >= '3.12' \\\n    --hash=sha256:{DIGEST}\n"
RELEASES = {("alpha", "1.0"), ("beta", "2.0"), ("gamma", "3.1")}
WAIVER = """
[[waiver]]
id = "CVE-2026-1"
package = "gamma"
reason = "never called"
person = "Ada"
expires = {expires}
"""


class Service:
    """An advisory service as OSV answers, with a record of what it was asked."""

    def __init__(self) -> None:
        self.known = dict(KNOWN)
        self.status = 200
        self.asked: list[tuple[str, str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(service.answer(query)).encode()
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"

    def answer(self, query: dict[str, Any]) -> dict[str, Any]:
        release = (query["package"]["name"], query["version"])
        self.asked.append(release)
        names = self.known.get(release)
        if not names:
            return {}
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.0"}]}
        package = {"name": release[0], "ecosystem": "PyPI"}
        affected = [{"package": package, "ranges": [fixed]}]
        return {"vulns": [{"id": names[0], "aliases": names[1:], "affected": affected}]}

    @property
    def command(self) -> list[str]:
        return [*advisories.SERVICES["osv"], "--osv-url", self.url]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


class House:
    """A folder of one lock, and a file of waivers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.waivers = folder, folder / "waivers.toml"
        (folder / "run.txt").write_text(LOCK)
        self.waivers.write_text("")

    def audit(self, *commands: list[str]) -> int:
        services = {f"service-{number}": command for number, command in enumerate(commands)}
        return audit.main(self.folder, self.waivers, services, TODAY)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def stub(folder: Path, text: str) -> list[str]:
    """A pip-audit that ends as its source text says."""
    (folder / "stub.py").write_text(f"import sys, json\n{text}")
    return [sys.executable, str(folder / "stub.py")]


def told(folder: Path, entries: list[dict[str, Any]]) -> list[str]:
    """A pip-audit that says this of its dependencies."""
    report = json.dumps({"dependencies": entries, "fixes": []})
    return stub(folder, f"sys.stdout.write({report!r})")


def looked_up(release: tuple[str, str], *ids: str) -> dict[str, Any]:
    vulns = [{"id": name, "aliases": [], "fix_versions": []} for name in ids]
    return {"name": release[0], "version": release[1], "vulns": vulns}


def test_what_is_clean_passes_where_the_canary_is_reported(
    house: House, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    (house.folder / "run.txt").write_text(LOCK + LATER)
    assert house.audit(service.command) == 0
    # Each release, whatever its marker, and the canary each time.
    assert set(service.asked) == RELEASES | {("gamma", "3.2"), CANARY}
    assert service.asked.count(CANARY) == 2
    assert capsys.readouterr().out.startswith("audit passed: service-0 was asked of 4 releases")


def test_a_service_that_does_not_know_the_canary_is_not_believed(
    house: House, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.known = {}
    assert house.audit(service.command) == 1
    said = capsys.readouterr().out.splitlines()
    assert "the canary flask 0.5 was not reported" in said[0]
    assert said[-1] == "AUDIT FAILED"


@pytest.mark.parametrize("silent", [3, 1])
def test_the_canary_is_reported_every_time(house: House, tmp_path: Path, silent: int) -> None:
    """Asked of three releases and of one, since gamma is locked twice."""
    (house.folder / "run.txt").write_text(LOCK + LATER)
    reader = stub(
        tmp_path,
        "lines = open(sys.argv[sys.argv.index('--requirement') + 1]).read().split()\n"
        "vulns = [{'id': 'PYSEC-2018-66', 'aliases': [], 'fix_versions': []}]\n"
        f"said = vulns if len(lines) - 1 != {silent} else []\n"
        "pairs = [line.split('==') for line in lines]\n"
        "told = [{'name': name, 'version': version, 'vulns': said if name == 'flask' else []}\n"
        "        for name, version in pairs]\n"
        "print(json.dumps({'dependencies': told}))\n",
    )
    assert house.audit(reader) == 1


def test_a_service_that_knows_the_canary_alone_fails(house: House, tmp_path: Path) -> None:
    entries = [{"name": name, "skip_reason": "not found"} for name, _ in sorted(RELEASES)]
    assert house.audit(told(tmp_path, [*entries, looked_up(CANARY, "PYSEC-2018-66")])) == 1


def test_one_release_that_was_passed_over_fails(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [looked_up(release) for release in sorted(RELEASES)]
    entries.append(looked_up(CANARY, "PYSEC-2018-66"))
    assert house.audit(told(tmp_path, entries)) == 0
    for place, (name, version) in enumerate(sorted(RELEASES)):
        skipped = {"name": name, "skip_reason": "not found"}
        lacking = [*entries[:place], *entries[place + 1 :]]
        for given in ([*lacking, skipped], lacking):
            capsys.readouterr()
            assert house.audit(told(tmp_path, given)) == 1
            assert f"{name} {version}: not looked up" in capsys.readouterr().out


def test_an_advisory_that_nobody_waived_fails(
    house: House, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    # The marker keeps this one off every machine that tests run on.
    service.known["beta", "2.0"] = ["GHSA-1", "CVE-2026-1"]
    house.waivers.write_text(WAIVER.format(expires="2026-12-31"))  # of another package
    assert house.audit(service.command) == 1
    said = capsys.readouterr().out
    assert "beta 2.0: CVE-2026-1 (GHSA-1), repaired in 9.0; lock another release" in said
    assert "gamma" not in said


@pytest.mark.parametrize(
    ("id", "expires", "code"),
    [
        ("CVE-2026-1", "2026-03-01", 0),
        ("CVE-2026-1", "2026-02-28", 1),
        ("GHSA-1", "2026-12-31", 0),
        ("CVE-2026-2", "2026-12-31", 1),
    ],
)
def test_a_waiver_is_of_one_advisory_and_holds_through_its_last_day(
    house: House,
    tmp_path: Path,
    id: str,
    expires: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entries = [looked_up(release) for release in sorted({*RELEASES, CANARY})]
    for entry in entries:
        if entry["name"] in ("gamma", "flask"):
            entry["vulns"] = [{"id": "CVE-2026-1", "aliases": ["GHSA-1"], "fix_versions": []}]
    house.waivers.write_text(WAIVER.format(expires=expires).replace("CVE-2026-1", id))
    assert house.audit(told(tmp_path, entries)) == code
    said = capsys.readouterr().out
    assert ("waived until 2026-02-28" in said and "ask Ada" in said) is ("02-28" in expires)
    assert ("gamma 3.1: CVE-2026-1 (GHSA-1)" in said) is (id == "CVE-2026-2")


def test_where_nobody_answers_the_audit_is_skipped_and_says_so(
    house: House, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = "http://127.0.0.1:1/v1/query"  # the port of nothing since 1988
    closed = [*advisories.SERVICES["osv"], "--osv-url", nobody]
    service.status = 503
    # As a mirror of packages answers that knows no advisories: pip-audit ends with 0.
    reason = "Dependency not found on PyPI and could not be audited"
    entries = [{"name": name, "skip_reason": reason} for name, _ in sorted({*RELEASES, CANARY})]
    assert house.audit(closed, service.command, told(tmp_path, entries)) == 69
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("AUDIT SKIPPED, NOT PASSED: nobody could be asked")
    for said in (
        "service-0: ",
        "ConnectionError",
        "ServiceError",
        f"passed over all, e.g. {reason}",
    ):
        assert said in line


def test_who_answers_late_is_not_waited_for(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisories, "_SECONDS", 0.1)
    assert house.audit(stub(tmp_path, "sys.stdin.read(0)\nwhile True: pass")) == 69


def test_the_next_service_is_asked_where_one_does_not_answer(
    house: House, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"name": name, "skip_reason": "x"} for name, _ in sorted({*RELEASES, CANARY})]
    mirror = told(tmp_path, entries)
    assert house.audit(mirror, service.command) == 0
    assert "service-1 was asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "sys.exit(1)",
        "sys.exit('ERROR: unknown option')",
        "sys.stdout.write('no JSON')",
        "sys.stdout.write('[]')",
        "sys.stdout.write('{}')",
        "sys.stderr.write('No module named pip_audit'); sys.exit(1)",
    ],
)
def test_a_pip_audit_that_breaks_is_no_service_that_is_silent(
    house: House, tmp_path: Path, text: str
) -> None:
    assert house.audit(stub(tmp_path, text)) == 1


@pytest.mark.parametrize(
    "lock",
    [
        "",
        "alpha\n",
        "alpha==1.0\n",
        f"alpha>=1.0 \\\n    --hash=sha256:{DIGEST}\n",
        f"alpha==1.0 \\\n    --hash=sha256:{DIGEST} \\\n",
        f"alpha==1.0 \\\n    --hash=md5:{DIGEST}\n",
        "alpha==1.0 \\\n    # via beta\n",
        f"alpha @ file:///alpha.whl \\\n    --hash=sha256:{DIGEST}\n",
        "-r other.txt\n",
        "--index-url x\n",
    ],
)
def test_a_lock_that_pins_less_is_not_audited(
    house: House, service: Service, lock: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (house.folder / "run.txt").write_text(lock)
    assert house.audit(service.command) == 1
    assert "run.txt:" in capsys.readouterr().out and not service.asked


def test_no_locks_are_nothing_to_pass(house: House, service: Service) -> None:
    (house.folder / "run.txt").rename(house.folder / "overrides.txt")
    assert house.audit(service.command) == 1


@pytest.mark.parametrize(
    "change",
    [
        ('id = "CVE-2026-1"\n', ""),
        ("person", "name"),
        ('"Ada"', '" "'),
        ('"Ada"', "3"),
        ("2026-12-31", '"2026-12-31"'),
        ("2026-12-31", "2026-12-31T00:00:00Z"),
        ("2026-12-31", "2026-12-31\nmore = 1"),
        ("[[waiver]]", "[[waivers]]"),
        ("[[waiver]]", "[waiver]"),
        ("[[waiver]]", "all = true\n[[waiver]]"),
        ("[[waiver]]", "[[waiver"),
    ],
)
def test_a_waiver_that_is_not_whole_fails(house: House, change: tuple[str, str]) -> None:
    text = WAIVER.format(expires="2026-12-31")
    house.waivers.write_text(text)
    assert len(read_waivers(house.waivers)) == 1
    house.waivers.write_text(text.replace(*change))
    with pytest.raises(WaiverError, match=r"waivers\.toml: "):
        read_waivers(house.waivers)
    assert house.audit() == 1


def test_waivers_are_there_and_of_one_advisory_each(house: House) -> None:
    house.waivers.write_text(2 * WAIVER.format(expires="2026-12-31"))
    assert house.audit() == 1
    house.waivers.unlink()
    assert house.audit() == 1


def test_the_canary_is_locked_nowhere() -> None:
    locked = {pin.name for path in locks() for pin in read_lock(path)}
    assert "torch" in locked and CANARY[0] not in locked


def test_the_waivers_of_this_house_are_whole_and_so_is_their_example(tmp_path: Path) -> None:
    read_waivers(audit.WAIVERS)
    lines = audit.WAIVERS.read_text().splitlines()
    shown = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    (tmp_path / "waivers.toml").write_text("\n".join(shown))
    (example,) = read_waivers(tmp_path / "waivers.toml")
    assert (example.package, example.expires) == ("torch", datetime.date(2026, 12, 31))


@pytest.mark.parametrize(("audited", "code"), [(0, 0), (69, 0), (1, 1), (2, 2)])
def test_a_run_of_ci_takes_a_skipped_audit_but_ends_with_saying_so(
    tmp_path: Path, audited: int, code: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    # Chromium among them, or it would be installed.
    for name, ends in {"python": audited, "advprune": 0, "make": 0, "chromium": 0}.items():
        program = tmp_path / ".venv/bin" / name
        program.write_text(f"#!/bin/sh\nexit {ends}\n")
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path / '.venv/bin'}:{os.environ['PATH']}"}
    words = ["bash", str(tmp_path / ".ci/run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith("AUDIT SKIPPED, NOT PASSED") is (audited == 69)
