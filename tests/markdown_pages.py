"""The Markdown of the repository as a reader and GitHub see it: links, anchors, code, commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Where a checkout has Markdown of its own; runs, builds and environments lie beside these.
_FOLDERS = ("advprune", "benchmarks", "deploy", "docs", "export", "pipeline", "tests", ".github")
_FENCE = re.compile(r"^(```+|~~~+)(\w*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:\A|\n)\n((?: {4}[^\n]*\n(?:[ ]*\n(?= {4}))?)+)")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+(?:\([^()]*\))?)\)")
_IMAGE = re.compile(r"<img\b[^>]*>")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, "" where none is named, and its text."""

    language: str
    text: str


@dataclass(frozen=True)
class Link:
    """What is linked to, in which words; an image is a link with `is_image`."""

    target: str
    text: str
    is_image: bool


def pages() -> list[Path]:
    """Every Markdown file of the checkout, from its root."""
    found = list(ROOT.glob("*.md"))
    for folder in _FOLDERS:
        found += (ROOT / folder).rglob("*.md")
    return sorted(path.relative_to(ROOT) for path in found)


def blocks(text: str) -> list[Block]:
    """Fenced and indented code; of both the indentation is off."""
    fenced = [Block(m[2], m[3]) for m in _FENCE.finditer(text)]
    rest = _FENCE.sub("\n", text)
    plain = (re.sub(r"^ {4}", "", m[1], flags=re.MULTILINE) for m in _INDENTED.finditer(rest))
    return fenced + [Block("", code) for code in plain]


def links(text: str) -> list[Link]:
    """Links and images, in Markdown's own words and in HTML's; those inside of links too."""
    rest = re.sub(r"(`+)[^`\n]*\]\([^`\n]*\1", "", without_blocks(text))  # code, not a link
    found: list[Link] = []
    for bang, words, target in _LINK.findall(rest):
        found.append(Link(target, words, bool(bang)))
        found += [Link(t, w, bool(b)) for b, w, t in _LINK.findall(words)]
    for tag in _IMAGE.findall(rest):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        found.append(Link(attributes.get("src", ""), attributes.get("alt", ""), True))
    return found + [Link(target, "", False) for target in re.findall(r'<a href="([^"]*)"', rest)]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page, and those that it names itself."""
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    headings = re.findall(r"^#{1,6} +(.+?)(?: +#+)?$", without_blocks(text), re.MULTILINE)
    for words in headings:
        base = slug(words)
        name, copies = base, 0
        while name in found:
            copies += 1
            name = f"{base}-{copies}"
        found.add(name)
    return found


def without_blocks(text: str) -> str:
    """The page without its blocks of code, in which nothing is a link or a heading."""
    return _INDENTED.sub("\n\n", _FENCE.sub("\n", text))


def slug(heading: str) -> str:
    """GitHub's anchor: lower case, signs dropped, a hyphen for each space."""
    words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts by its words
    words = re.sub(r"[*`]|(?<!\w)_|_(?!\w)", "", words)
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `advprune` and `make` command in the code of a page.

    A `$` before it, environment variables, and what a shell does after it (`&&`, `|`, `>`) are off;
    of `a|b|c` as a first word each is a command.
    """
    for block in blocks(text):
        if block.language in ("", "sh", "bash", "shell", "console"):
            for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
                yield from _of_line(line)


def _of_line(line: str) -> Iterator[list[str]]:
    if not re.match(r"^(\$ )?([A-Z_]+=\S* )*(\.venv/bin/)?(advprune|make)(?=\s|$)", line):
        return
    words = shlex.split(line.removeprefix("$ "), comments=True)
    for part in _split(words, {"&&", "||", "|", ";", "&"}):
        start = next((i for i, word in enumerate(part) if not re.match(r"[A-Z_]+=", word)), 0)
        program, *rest = part[start:]
        rest = rest[: next((i for i, w in enumerate(rest) if w.startswith((">", "2>", "<"))), None)]
        name = Path(program).name
        if name not in ("advprune", "make"):
            continue
        for first in rest[0].split("|") if rest else [""]:
            yield [name, *([first] if first else []), *rest[1:]]


def _split(words: list[str], signs: set[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in signs:
            parts.append([])
        else:
            parts[-1].append(word.rstrip(";"))
    return [part for part in parts if part]
