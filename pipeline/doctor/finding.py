"""One thing that was looked at, and looking that never fails itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "absent", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        status: "missing" blocks the pipeline; a "warning" costs time or will; what is "absent"
            would only be good to have.
        remedy: what to type or do, wherever something is not ok.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def guarded(name: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of one look; on a machine where it fails, that it did.

    Machines are odd in ways that nobody foresees, and the other findings are needed most there.
    """
    try:
        yield from look()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(
            name,
            "warning",
            f"could not be looked at ({reason})",
            "nothing, if all else is well; `advprune run` says where it minds",
        )
