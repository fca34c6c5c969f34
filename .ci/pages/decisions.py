"""The list of decisions, from the titles of their pages."""

from pathlib import Path

from pages.markdown import MADE

_INTRODUCTION = """# Decisions

What a later reader would question, and why it is so. Numbers are those of the files.

"""


def page(folder: Path) -> str:
    lines = []
    for path in sorted(folder.glob("[0-9]*.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ")
        number, _, words = title.partition(". ")
        lines.append(f"- [{number}]({path.name}) {words}\n")
    return f"{MADE}\n\n{_INTRODUCTION}{''.join(lines)}"
