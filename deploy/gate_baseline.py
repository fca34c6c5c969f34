"""Accepting an engine: its verdicts become what the next ones are held against.

Standard library only, like the gate.
"""

import os
from dataclasses import replace
from pathlib import Path

from deploy.errors import DeployError
from deploy.gate_health import demand_sound
from deploy.gate_pairs import PRIMARY, differences
from deploy.outcome import percent
from deploy.verdicts import Outdated, Verdicts, read, write


def update_baseline(
    path: Path, candidate: Verdicts, reason: str, accept_regression: bool = False
) -> str:
    """Write the baseline, with the reason and what was before.

    Returns:
        What changed, in lines: accuracy by metric, size, settings of the protocol. "unchanged"
        where the file says all of it already; it is then left as it is.

    Raises:
        DeployError: 2, no reason, or the environment says CI: a build must not accept itself;
            10, the engine is worse under the same protocol and that was not accepted; 11, its
            evaluation is invalid; 65, what is there is not a baseline; 73 or 74, it cannot be
            created or written.
    """
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise DeployError("gate: CI is set; update the baseline on a desk and review the diff", 2)
    if not reason.strip():
        raise DeployError('gate: a new baseline needs a reason; add --reason "..."', 2)
    demand_sound(candidate)
    old, lines = _old(path), [f"{path}: updated"]
    if old is not None:
        if (old.protocol_hash, old.artefact, old.correct) == (
            candidate.protocol_hash,
            candidate.artefact,
            candidate.correct,
        ):
            return f"{path}: unchanged"
        _demand_no_regression(candidate, old, accept_regression)
        previous = {
            "artefact": old.artefact,
            "protocol_hash": old.protocol_hash,
            "accuracy": old.accuracy(),
        }
        lines += _changes(candidate, old)
    else:
        previous = None
        lines += [f"  {name}: none → {percent(x)}" for name, x in candidate.accuracy().items()]
    _make_folder(path.parent)
    write(path, replace(candidate, reason=reason.strip(), previous=previous))
    return "\n".join(lines)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(f"{folder}: cannot be created ({error.strerror})", 73) from error


def _old(path: Path) -> Verdicts | None:
    """What is there; nothing where that was written before this schema."""
    try:
        return read(path) if path.exists() else None
    except Outdated:
        return None


def _demand_no_regression(candidate: Verdicts, old: Verdicts, accepted: bool) -> None:
    before, after = old.accuracy()[PRIMARY], candidate.accuracy()[PRIMARY]
    if old.protocol_hash == candidate.protocol_hash and after < before and not accepted:
        raise DeployError(
            f"gate: {PRIMARY} {percent(before)} → {percent(after)} is worse than the baseline; "
            "if that is meant, add --accept-regression",
            10,
        )


def _changes(candidate: Verdicts, old: Verdicts) -> list[str]:
    before, after = old.accuracy(), candidate.accuracy()
    lines = [
        f"  {name}: {_percent(before.get(name))} → {_percent(after.get(name))}"
        for name in dict.fromkeys([PRIMARY, *after, *before])
    ]
    sizes = [(verdicts.measured or {}).get("bytes") for verdicts in (old, candidate)]
    if any(sizes):
        lines.append(f"  bytes: {sizes[0] or 'unknown'} → {sizes[1] or 'unknown'}")
    return [*lines, *(f"  protocol: {difference}" for difference in differences(candidate, old))]


def _percent(share: float | None) -> str:
    return "none" if share is None else percent(share)
