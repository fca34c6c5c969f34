"""Hold every locked release against what is published of vulnerabilities.

    python .ci/audit.py

Exit codes: 0, every release was looked up, and what was found of it is waived; 1, not so; 69,
nobody could be asked, which is SKIPPED and not passed.
"""

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from advisories import CANARY, SERVICES, Answer, Broken, Release, Unreachable, look_up
from locks import REQUIREMENTS, ROOT, LockError, locks, read_lock
from waivers import Waiver, WaiverError, read_waivers

PASSED, FAILED, SKIPPED = 0, 1, 69
WAIVERS = ROOT / ".ci/waivers.toml"


def main(
    folder: Path = REQUIREMENTS,
    waivers: Path = WAIVERS,
    services: Mapping[str, Sequence[str]] = SERVICES,
    today: datetime.date | None = None,
) -> int:
    """Audit the locks of a folder, say what was found, and return the exit code.

    Args:
        services: see `look_up`.
        today: in UTC, where it is not this day.
    """
    today = today or datetime.datetime.now(datetime.UTC).date()
    try:
        releases = sorted({(p.name, p.version) for path in locks(folder) for p in read_lock(path)})
        granted = read_waivers(waivers)
        over = [waiver for waiver in granted if waiver.expires < today]
        if over:
            return _fail([f"{waivers.name}: {_expired(waiver)}" for waiver in over])
        answer = look_up(services, releases)
    except (LockError, WaiverError, Broken) as error:
        return _fail([str(error)])
    except Unreachable as error:
        _say(f"AUDIT SKIPPED, NOT PASSED: nobody could be asked for advisories ({error})")
        return SKIPPED
    complaints = list(_complaints(releases, answer, granted))
    if complaints:
        return _fail(complaints)
    _say(
        f"audit passed: {answer.service} was asked of {len(releases)} releases, passed over none "
        f"and reported the canary; {len(granted)} waivers"
    )
    return PASSED


def _complaints(
    releases: Sequence[Release], answer: Answer, waivers: Sequence[Waiver]
) -> Iterator[str]:
    if not answer.canary:
        name, version = CANARY
        yield f"the canary {name} {version} was not reported, so {answer.service} knows nothing"
    for name, version in releases:
        if (name, version) not in answer.advisories:
            yield f"{name} {version}: not looked up by {answer.service}, so nothing is known of it"
        for advisory in answer.advisories.get((name, version), []):
            if not any(w.package == name and w.id in advisory.names for w in waivers):
                yield f"{name} {version}: {advisory}; lock another release, or waive it"


def _expired(waiver: Waiver) -> str:
    return (
        f"{waiver.id} of {waiver.package} was waived until {waiver.expires}; lock a release "
        f"without it, or ask {waiver.person} why it may stay"
    )


def _fail(complaints: Sequence[str]) -> int:
    for complaint in complaints:
        _say(f"audit: {complaint}")
    _say("AUDIT FAILED")
    return FAILED


def _say(line: str) -> None:
    sys.stdout.write(" ".join(line.split()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
