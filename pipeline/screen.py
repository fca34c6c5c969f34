"""What a person sees of a run: a line per stage, a bar with its ETA on a terminal, the verdict."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.stage import Artifact

# Metric -> the words before its value.
_HEADLINES = {
    "began": "",
    "quantisation": "",
    "val_clean": "val clean ",
    "val_robust": "val robust ",
    "unseen_clean": "unseen clean ",
    "unseen_robust": "unseen robust ",
    "sparsity": "sparsity ",
    "int8_clean": "int8 clean ",
    "int8_worst": "int8 worst ",
    "verdict": "verdict ",
}


class Screen:
    """Writes to a console; the bar appears only where that is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def title(self, text: str) -> None:
        self.console.print(text, style="bold", highlight=False, markup=False)

    @contextmanager
    def running(self, name: str) -> Iterator[tuple[Progress, TaskID]]:
        """A bar for one stage, gone when the stage ends."""
        bar = Progress(
            TextColumn(" ▸ {task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            yield bar, bar.add_task(name, total=None, detail="")

    def finished(self, name: str, artifact: Artifact, *, cached: bool) -> None:
        """One line: the stage, how long it took or that it was there already, what it measured."""
        took = "cached" if cached else f"{artifact.manifest['seconds']:.1f} s"
        self.console.print(
            f" ✓ {name:<12} {took:>9}  {_summary(artifact)}", highlight=False, markup=False
        )

    def line(self, text: str) -> None:
        # A path that is broken over two lines cannot be copied.
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _summary(artifact: Artifact) -> str:
    metrics = artifact.metrics
    parts = []
    for key, words in _HEADLINES.items():
        if key in metrics:
            value = metrics[key]
            shown = f"{100 * value:.4g} %" if isinstance(value, float) else str(value)
            parts.append(words + shown)
    return "  ".join(parts)
