"""What a person sees of a run: a line per stage, what the one at work is doing, the verdict."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console

from pipeline.stage import Artifact
from pipeline.view import View

# Metric -> the words before its value.
_HEADLINES = {
    "began": "",
    "frozen": "",
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
    """Writes to a console; what moves appears only where that is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def title(self, text: str) -> None:
        self.console.print(text, style="bold", highlight=False, markup=False)

    @contextmanager
    def running(self, name: str) -> Iterator[View]:
        """What one stage shows while it runs."""
        view = View(name, self.console)
        with view.live() if view.drawn else nullcontext():
            yield view

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
