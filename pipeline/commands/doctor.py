"""`advprune doctor`: what this machine has, what it lacks, and how to get that."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from advprune.errors import printable
from pipeline.doctor import examine

_SIGNS = {"ok": "✓", "absent": "·", "warning": "!", "missing": "✗"}


def doctor(runs: Path, as_json: bool) -> int:
    findings = examine(runs)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        for finding in findings:
            line = f" {_SIGNS[finding.status]} {finding.name:<14} {printable(finding.found)}\n"
            remedy = f"   → {printable(finding.remedy)}\n" if finding.remedy else ""
            sys.stdout.write(line + remedy)
    return 69 if any(finding.status == "missing" for finding in findings) else 0
