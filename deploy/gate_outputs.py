"""The gate's result for people and machines: JSON, Markdown, JUnit XML, OpenMetrics, GitHub.

Names of attacks come from files that anyone may have written, so each form escapes its own way.
Standard library only, like the gate.
"""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from xml.etree import ElementTree

from deploy.errors import DeployError
from deploy.files import write_atomic
from deploy.outcome import GateResult, code, percent, points

MARKER = "<!-- advprune-gate -->"  # a comment that begins with it is ours, and is written over


def to_markdown(result: GateResult) -> str:
    """A summary for a CI job page or a pull request."""
    lines = [MARKER, f"### Gate: {result.status}", ""]
    lines += [f"- {escape(line, quote=False)}" for line in result.lines]
    if result.rows:
        lines += ["", "| metric | against | before | after | drop | at most | worse | better | p |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in result.rows:
        cells = (
            code(row.metric),
            code(row.against),
            percent(row.before),
            percent(row.after),
            points(row.drop),
            points(row.bound),
            str(row.worse),
            str(row.better),
            f"{row.p:.2g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_junit(result: GateResult) -> bytes:
    """JUnit XML: a test case for each check; an inconclusive one is an error, a warning passes."""
    counts = {
        "tests": str(len(result.checks)),
        "failures": str(sum(check.status == "FAIL" for check in result.checks)),
        "errors": str(sum(check.status == "INCONCLUSIVE" for check in result.checks)),
    }
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "gate", **counts})
    for check in result.checks:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=check.name)
        match check.status:
            case "FAIL":
                ElementTree.SubElement(case, "failure", message=check.message)
            case "INCONCLUSIVE":
                ElementTree.SubElement(case, "error", message=check.message)
            case "WARN":
                ElementTree.SubElement(case, "system-out").text = f"warning: {check.message}"
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)


def to_metrics(result: GateResult) -> str:
    """OpenMetrics 1.0 text, all gauges but the status, which is a state set."""
    lines = _head("advprune_gate", "stateset", "What the gate decided.")
    for status in ("PASS", "FAIL", "INCONCLUSIVE"):
        value = int(result.status == status)
        lines.append(_sample("advprune_gate", {"advprune_gate": status}, value))
    lines += _head("advprune_accuracy", "gauge", "Share of all images that are right.")
    for row in result.rows:
        labels = {"metric": row.metric, "against": row.against}
        lines.append(_sample("advprune_accuracy", {**labels, "when": "before"}, row.before))
        lines.append(_sample("advprune_accuracy", {**labels, "when": "after"}, row.after))
    families = {
        "advprune_drop": ("Accuracy lost.", "drop"),
        "advprune_drop_bound": ("One-sided 95 % upper bound of the accuracy lost.", "bound"),
        "advprune_p": ("How often chance alone makes it at least this much worse.", "p"),
    }
    for name, (help_, attribute) in families.items():
        lines += _head(name, "gauge", help_)
        for row in result.rows:
            labels = {"metric": row.metric, "against": row.against}
            lines.append(_sample(name, labels, getattr(row, attribute)))
    lines += _head("advprune_size_bytes", "gauge", "Size of the engine's file.", "bytes")
    for who, measured in result.measured.items():
        if measured is not None:
            lines.append(_sample("advprune_size_bytes", {"engine": who}, measured["bytes"]))
    return "\n".join([*lines, "# EOF"]) + "\n"


def write_outputs(result: GateResult, folder: Path) -> None:
    """Write gate.json, gate.md, junit.xml and metrics.txt into an existing folder.

    Raises:
        DeployError: 73 or 74, a file cannot be created or written.
    """
    content = json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n"
    write_atomic(folder / "gate.json", content.encode())
    write_atomic(folder / "gate.md", to_markdown(result).encode())
    write_atomic(folder / "junit.xml", to_junit(result))
    write_atomic(folder / "metrics.txt", to_metrics(result).encode())


def tell_github(result: GateResult, environment: Mapping[str, str]) -> list[str]:
    """Fill the summary and the outputs of a step, where this is one.

    Returns:
        The workflow commands to be printed: an annotation for each check that does not pass.

    Raises:
        DeployError: 74, a file that GitHub names cannot be written.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    drop = f"{result.primary.drop:.6f}" if result.primary else ""
    _append(environment.get("GITHUB_STEP_SUMMARY"), to_markdown(result))
    _append(environment.get("GITHUB_OUTPUT"), f"status={result.status}\ndrop={drop}\n")
    levels = {"FAIL": "error", "INCONCLUSIVE": "error", "WARN": "warning"}
    return [
        _annotation(levels[check.status], check.message)
        for check in result.checks
        if check.status in levels
    ]


def refusal_annotations(error: DeployError, environment: Mapping[str, str]) -> Iterator[str]:
    """The workflow command for a gate that could not judge, where this is GitHub."""
    if environment.get("GITHUB_ACTIONS") == "true":
        yield _annotation("error", str(error))


def _annotation(level: str, message: str) -> str:
    for sign, code_ in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        message = message.replace(sign, code_)
    return f"::{level} title=gate::{message}"


def _append(name: str | None, text: str) -> None:
    if name:
        try:
            with Path(name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise DeployError(f"{name}: cannot be written ({error.strerror})", 74) from error


def _head(name: str, kind: str, help_: str, unit: str = "") -> list[str]:
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {help_}"]
    return [*lines, f"# UNIT {name} {unit}"] if unit else lines


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
