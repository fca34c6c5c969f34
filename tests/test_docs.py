"""What the pages link to is there, what they tell to type exists, and every page can be found."""

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_pages import ROOT, anchors, blocks, commands, links, pages, slug
from pages.commands import every, tree

from advprune.method import names
from pipeline.recipe import known_keys

PAGES = pages()
STARTS = (Path("README.md"), Path("docs/README.md"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.search(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)[1].split())  # pyright: ignore
VARIABLES = set(re.findall(r"^([A-Z]+) +\?=", MAKEFILE, re.MULTILINE))
# In place of what a reader fills in.
PLACEHOLDER = re.compile(r"[A-Z][A-Z_0-9]*$")


def every_page(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test of all pages, which costs less than one of each; a failure says of which it is."""

    def test() -> None:
        for page in PAGES:
            try:
                check(page)
            except (AssertionError, SyntaxError) as error:
                error.add_note(f"on the page {page}")
                raise

    test.__doc__ = check.__doc__
    return test


def read(page: Path) -> str:
    return (ROOT / page).read_text()


def inside(page: Path) -> list[tuple[str, Path, str]]:
    """(link, path from the root, anchor) of every link of a page that stays in the repository."""
    found = []
    for link in links(read(page)):
        if re.match(r"[a-z][a-z0-9+.-]*:", link.target):
            continue
        path, _, anchor = link.target.partition("#")
        place = (ROOT / page.parent / path).resolve() if path else ROOT / page
        found.append((link.target, place, anchor))
    return found


@every_page
def test_links_and_anchors_resolve(page: Path) -> None:
    for link, place, anchor in inside(page):
        assert not link.startswith("/"), f"{link}: GitHub would look at its own root"
        assert place.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert place.exists(), link
        if anchor:
            assert anchor in anchors(place.read_text()), link


@every_page
def test_images_exist_and_say_what_they_show(page: Path) -> None:
    for link in links(read(page)):
        if link.is_image and not link.target.startswith("https://"):
            assert (ROOT / page.parent / link.target).is_file(), link
            assert len(link.text) >= 10, f"{link.target}: alternative text for who cannot see it"


def test_every_page_can_be_reached() -> None:
    reached, front = set(STARTS), list(STARTS)
    while front:
        for _, place, _ in inside(front.pop()):
            target = place / "README.md" if place.is_dir() else place
            page = target.relative_to(ROOT)
            if target.suffix == ".md" and target.is_file() and page not in reached:
                reached.add(page)
                front.append(page)
    assert set(PAGES) - reached == set(), "link it from a page, or from docs/README.md"


@every_page
def test_no_path_and_no_name_of_a_machine(page: Path) -> None:
    text = read(page)
    assert not re.findall(r"(?<![\w.~])/(?:home|root|Users|tmp|mnt|private)/\S*", text)
    # What a container calls its folders is no machine's.
    assert not re.findall(r"(?<![\w.~:])/work/(?!runs\b|images\b)\S*", text)
    assert str(ROOT) not in text


@every_page
def test_python_compiles(page: Path) -> None:
    for block in blocks(read(page)):
        if block.language in ("python", "py"):
            compile(block.text, str(page), "exec")


@cache
def options(words: str, method: str | None) -> dict[str, bool]:
    """Option -> whether it takes a value, for a command, with the options of a method it names."""
    asked = [words.split()[1], "--method", method] if method else []
    taking = {
        flag: not getattr(parameter, "is_flag", False)
        for parameter in every(tree(asked))[words].params
        for flag in parameter.opts
        if flag.startswith("-")
    }
    return {**taking, "--help": False, "--debug": False}


def check(words: list[str]) -> None:
    """Raises AssertionError where `advprune` has no such command, option, method or setting."""
    if not words or words[0] in ("--help", "--install-completion", "--show-completion"):
        return
    known, name, rest = every(tree()), f"advprune {words[0]}", words[1:]
    if name not in known:  # a group, whose first command may be left out
        assert any(key.startswith(f"{name} ") for key in known), f"no command {words[0]!r}"
        named = rest and f"{name} {rest[0]}" in known
        name, rest = (f"{name} {rest[0]}", rest[1:]) if named else (f"{name} make", rest)
    given = dict(pairwise(rest))
    method = given.get("--method") or given.get("-m")
    if method and not PLACEHOLDER.match(method):
        assert method in (*names(), "taylor", "hrap"), f"no method {method!r}"
    of_method = method if method in names() and words[0] in ("run", "plan") else None
    taking = options(name, of_method)
    waits = None
    for word in rest:
        if waits:
            if waits == "--set" and (key := word.partition("=")[0]) and "." in key:
                section = key.partition(".")[0]
                assert key in known_keys() or section in ("STAGE", "options"), f"no setting {key}"
            waits = None
        elif word.startswith("-") and word != "-":
            flag, equals, _ = word.partition("=")
            if of_method is None and method:  # of a method that only the page knows
                taking = {flag: True, **taking}
            assert flag in taking, f"{name} has no {flag}"
            waits = flag if taking[flag] and not equals else None


@every_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for program, *words in commands(read(page)):
        if program == "advprune":
            check(words)
        else:
            for word in words:
                variable, equals, _ = word.partition("=")
                known = variable in VARIABLES if equals else word in TARGETS
                assert known or word.startswith("-"), f"make {' '.join(words)}: {word}"


def test_the_readers_of_pages_read() -> None:
    text = (
        "# The `one` & only: a_b, 99 %\n\n## Twice\n\n## Twice\n\n"
        "[x](a.md#b) and `[no](c.md)` ![shown](d.svg)\n\n"
        "    # comment\n    advprune run --method harp \\\n        --set a.b=1   # why\n"
        '    FOO=1 make test ARGS="-k x" && advprune plan | head > file\n'
        "    advprune attacks|data\n\n"
        "```python\n# not a heading\nx = 1\n```\n"
    )
    assert anchors(text) == {"the-one--only-a_b-99-", "twice", "twice-1"}
    assert [link.target for link in links(text)] == ["a.md#b", "d.svg"]
    assert [block.language for block in blocks(text)] == ["python", ""]
    assert list(commands(text)) == [
        ["advprune", "run", "--method", "harp", "--set", "a.b=1"],
        ["make", "test", "ARGS=-k x"],
        ["advprune", "plan"],
        ["advprune", "attacks"],
        ["advprune", "data"],
    ]
    assert slug("Download size: ResNet-18 in 8 bits at 99 %") == (
        "download-size-resnet-18-in-8-bits-at-99-"
    )


@pytest.mark.parametrize(
    "line",
    [
        "advprune runs",
        "advprune run --metod harp",
        "advprune run --method harp --allocation erk",
        "advprune run --method hapr",
        "advprune run --set prune.epoch=3",
        "advprune bundle verify X --sign key.pem",
        "advprune gate RUN --floors 0.7",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(AssertionError):
        check(line.split()[1:])


def test_commands_are_found_at_all() -> None:
    found = [words for page in PAGES for words in commands(read(page))]
    assert len([words for words in found if words[0] == "advprune"]) > 80
    assert len([words for words in found if words[0] == "make"]) > 20
