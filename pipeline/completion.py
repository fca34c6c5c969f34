"""What the shell offers for a word that is begun; nothing is imported that takes longer than a key.

Names are read off folders, because the registries import torch.
"""

from collections.abc import Callable
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def methods(incomplete: str) -> list[str]:
    return _stems("advprune/methods/*.py", incomplete)


def presets(incomplete: str) -> list[str]:
    return _stems("pipeline/presets/*.toml", incomplete)


def one_of(*words: str) -> Callable[[str], list[str]]:
    """The words that go on as what is there."""

    def choices(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return choices


def _stems(pattern: str, incomplete: str) -> list[str]:
    found = sorted(path.stem for path in _ROOT.glob(pattern))
    return [name for name in found if name.startswith(incomplete) and name != "__init__"]
