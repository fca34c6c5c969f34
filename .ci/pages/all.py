"""Every page that is made from the program: its path from the root of the repository, its text."""

from pathlib import Path

from pages import attacks, commands, decisions, methods, settings, stages

ROOT = Path(__file__).parents[2]
_OWN = ("docs/methods",)  # folders in which nothing but generated pages lies


def made() -> dict[str, str]:
    """All pages, by path. Raises LookupError naming a setting that nobody has explained."""
    return {
        "docs/attacks.md": attacks.page(),
        "docs/settings.md": settings.page(),
        "docs/commands.md": commands.page(),
        "docs/adr/README.md": decisions.page(ROOT / "docs/adr"),
        **{f"docs/methods/{name}.md": text for name, text in methods.pages().items()},
        **{
            path.relative_to(ROOT).as_posix(): stages.with_tables(path.stem, path.read_text())
            for path in sorted((ROOT / "docs/stages").glob("*.md"))
        },
    }


def differing(pages: dict[str, str]) -> list[str]:
    """The pages that are not on disk as they are made, and those on disk that are made no more."""
    stale = [path for path, text in pages.items() if _on_disk(path) != text]
    for folder in _OWN:
        found = sorted((ROOT / folder).glob("*.md"))
        stale += [
            name for path in found if (name := path.relative_to(ROOT).as_posix()) not in pages
        ]
    return stale


def _on_disk(path: str) -> str | None:
    file = ROOT / path
    return file.read_text() if file.is_file() else None
