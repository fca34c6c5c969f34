"""The live table of a stage that trains, for any width of terminal, and its one line for a log."""

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.progress import Standing

_TWO_PAIRS = 62  # columns from which on two values stand side by side
_BAR = 28


def table(stage: str, standing: Standing, width: int) -> RenderableType:
    """All that is known, in lines that are never longer than the terminal."""
    at = standing.at
    assert at is not None
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=at.steps, completed=at.step, width=min(_BAR, max(width - 24, 4)))
    head.add_row(Text(f" ▸ {stage:<12}", no_wrap=True), bar, f"{100 * at.fraction:3.0f} %")
    pairs = 2 if width >= _TWO_PAIRS else 1
    body = Table.grid(padding=(0, 2, 0, 0))
    body.add_column(width=1)
    for _ in range(pairs):
        body.add_column(style="dim", no_wrap=True)
        body.add_column(no_wrap=True, overflow="ellipsis", min_width=20 if pairs == 2 else None)
    values = fields(standing)
    for first in range(0, len(values), pairs):
        body.add_row("", *(text for pair in values[first : first + pairs] for text in pair))
    return Group(head, body)


def fields(standing: Standing) -> list[tuple[str, str]]:
    """Label and value, in the order in which they are read; two make a line."""
    at = standing.at
    assert at is not None
    saved = standing.checkpoint
    since = f"step {saved:,}, {duration(standing.since_checkpoint)} ago" if saved else "none yet"
    found = [
        ("epoch", f"{standing.epoch_now}/{standing.epochs}"),
        ("step", f"{at.step:,}/{at.steps:,}"),
        ("loss", f"{standing.loss:.4f}"),
        ("images/s", _rate(standing)),
        ("val clean", _validated(standing, "val_clean")),
        ("val robust", _validated(standing, "val_robust")),
        ("elapsed", duration(standing.elapsed)),
        ("left", duration(standing.left)),
        ("checkpoint", since),
    ]
    if standing.sparsity is not None:
        found.append(("sparsity", f"{100 * standing.sparsity:.4g} %"))
    return found


def line(stage: str, standing: Standing) -> str:
    """The same for a log: what an epoch came to."""
    parts = [f"epoch {standing.epoch_now}/{standing.epochs}", f"loss {standing.loss:.4f}"]
    for key, words in (("val_clean", "val clean"), ("val_robust", "val robust")):
        if (found := standing.validated(key)) is not None:
            parts.append(f"{words} {_percent(found[0])}")
    if standing.sparsity is not None:
        parts.append(f"sparsity {_percent(standing.sparsity)}")
    parts += [f"{_rate(standing)} images/s", f"{duration(standing.left)} left"]
    return f"   {stage:<12} " + "  ".join(parts)


def duration(seconds: float | None) -> str:
    """As 0:07, 12:34 or 1:02:03; a dash for what is not known."""
    if seconds is None:
        return "–"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _rate(standing: Standing) -> str:
    rate = standing.images_per_second
    return "–" if rate is None else f"{rate:,.0f}"


def _validated(standing: Standing, key: str) -> str:
    found = standing.validated(key)
    return "–" if found is None else f"{_percent(found[0])}, best {_percent(found[1])}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
