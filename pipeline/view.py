"""What one stage shows while it runs.

On a terminal a bar, or a table where it trains, gone when the stage ends. Elsewhere a line at the
end of an epoch, at most one a minute, so that logs of days stay small.
"""

import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.progress import Standing
from pipeline.training_table import line, table

_PER_SECOND = 4  # drawings, of two milliseconds each, which training pays
_BETWEEN_LINES = 60.0  # seconds


class View:
    """Of one stage; its standing is told by whoever watches the stage.

    Attributes:
        drawn: whether there is a terminal that can be drawn upon.
    """

    def __init__(
        self, stage: str, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.standing = Standing(clock)
        self.drawn = console.is_terminal and not console.is_dumb_terminal
        self._stage, self._console, self._clock = stage, console, clock
        self._told = clock()
        self._bar = Progress(
            TextColumn(" ▸ {task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(stage, total=None)

    def live(self) -> Live:
        """Draws now and then, for the duration."""
        return Live(
            get_renderable=self.picture,
            console=self._console,
            refresh_per_second=_PER_SECOND,
            transient=True,
        )

    def picture(self) -> RenderableType:
        at = self.standing.at
        if self.standing.trains:
            return table(self._stage, self.standing, self._console.width)
        if at is not None:
            self._bar.update(self._task, completed=at.step, total=at.steps)
        return self._bar.get_renderable()

    def measured(self) -> None:
        """An epoch has been: where nothing is drawn, a line if the last one is a minute old."""
        now = self._clock()
        if not self.drawn and now - self._told >= _BETWEEN_LINES:
            self._told = now
            self.line(line(self._stage, self.standing))

    def line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
