"""What became of the mutants, for people and as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mutation.trying import Trial

GOAL = 0.8  # of the mutants of a group must be killed


def to_dict(trials: Mapping[str, Sequence[Trial]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Group -> its counts, those of each module, and its survivors."""
    return {name: _group(of_group, seconds[name]) for name, of_group in trials.items()}


def lines(content: Mapping[str, Any]) -> list[str]:
    """The same as a table of modules, and each survivor as a change."""
    found = [f"{'':42} mutants killed timeout survived equivalent  share"]
    for name, group in content.items():
        found += [_row(f"  {path}", counts) for path, counts in group["modules"].items()]
        found.append(f"{_row(name, group)}  ({group['seconds']:.0f} s)")
    for group in content.values():
        for one in group["survivors"]:
            where = f"{one['path']}:{one['line']} {one['function']}"
            found.append(f"{where}: {one['operator']} survived {one['tests']} tests [{one['key']}]")
            found += [f"  - {one['before']}", f"  + {one['after']}"]
    return found


def _group(trials: Sequence[Trial], seconds: float) -> dict[str, Any]:
    paths = dict.fromkeys(sorted(trial.path for trial in trials))
    return {
        **_counts(trials),
        "seconds": round(seconds, 1),
        "modules": {path: _counts(t for t in trials if t.path == path) for path in paths},
        "survivors": [
            {
                "path": trial.path,
                "line": trial.mutant.line,
                "function": trial.mutant.function,
                "operator": trial.mutant.operator,
                "key": trial.mutant.key,
                "before": trial.mutant.before,
                "after": trial.mutant.after,
                "tests": trial.tests,
            }
            for trial in sorted(trials, key=lambda trial: (trial.path, trial.mutant.number))
            if trial.fate == "survived"
        ],
    }


def _counts(trials: Iterable[Trial]) -> dict[str, Any]:
    fates = [trial.fate for trial in trials]
    found = {fate: fates.count(fate) for fate in ("killed", "timeout", "survived", "equivalent")}
    judged = len(fates) - found["equivalent"]
    share = (found["killed"] + found["timeout"]) / judged if judged else 1.0
    return {"mutants": len(fates), **found, "share": share}


def _row(name: str, counts: Mapping[str, Any]) -> str:
    return (
        f"{name:42} {counts['mutants']:7} {counts['killed']:6} {counts['timeout']:7} "
        f"{counts['survived']:8} {counts['equivalent']:10} {counts['share']:6.1%}"
    )
