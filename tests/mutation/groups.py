"""What is mutated together, and which mutants no test could tell from the original."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
GROUPS = HERE / "groups.toml"
EQUIVALENT = HERE / "equivalent.toml"


@dataclass(frozen=True)
class Group:
    """Modules, and the files of tests that answer for them, by their paths below the root."""

    name: str
    modules: tuple[str, ...]
    tests: tuple[str, ...]


def read_groups(path: Path = GROUPS) -> dict[str, Group]:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Group(name, tuple(group["modules"]), tuple(group["tests"]))
        for name, group in content.items()
    }


def read_equivalent(path: Path = EQUIVALENT) -> Mapping[str, Mapping[str, str]]:
    """Path of a source -> key of a mutant -> why it behaves like the original."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return {source: {one["key"]: one["why"] for one in ones} for source, ones in content.items()}
