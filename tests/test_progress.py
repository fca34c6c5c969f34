"""What is shown while a stage trains is so: rates, times, accuracies, sparsity, at any width."""

import io
import re
from collections.abc import Mapping

import pytest
import torch
from rich.console import Console
from toy import Memory, make_images, make_net, make_task

from advprune.masking import current_masks, hold, prunable_weights
from advprune.masks import keep_top, sparsity_of
from advprune.method import Progress, get
from advprune.train import Schedule, fit
from pipeline.progress import Standing
from pipeline.screen import Screen
from pipeline.training_table import duration
from pipeline.view import View

EPOCH_STEPS, EPOCHS, BATCH = 10, 5, 32
# Of an imaginary machine, in seconds; all are sums of powers of two.
A_STEP, A_MEASUREMENT = 0.25, 2.0
LABELS = {
    "epoch": "3/5",
    "step": "25/50",
    "loss": "0.6250",
    "images/s": "128",
    "val clean": "97.2 %, best 98.5 %",
    "val robust": "71.4 %, best 71.4 %",
    "elapsed": "0:10",
    "left": "0:12",
    "checkpoint": "step 20, 0:03 ago",
    "sparsity": "98.76 %",
}
HISTORY = [
    {"epoch": 1, "loss": 0.9, "val_clean": 0.985, "val_robust": 0.69, "sparsity": 0.5},
    {"epoch": 2, "loss": 0.7, "val_clean": 0.972, "val_robust": 0.714, "sparsity": 0.98764},
]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def console(width: int = 80, *, terminal: bool = True) -> Console:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, height=40, record=True)


def train(standing: Standing, clock: Clock, steps: int, first: int = 0) -> None:
    """Steps of an imaginary stage, each epoch measured and saved but one that is not over."""
    for step in range(first + 1, steps + 1):
        clock.now += A_STEP
        progress = Progress(step, EPOCHS * EPOCH_STEPS, EPOCH_STEPS)
        standing.step(progress, {"loss": step / 40, "images": BATCH})
        if step % EPOCH_STEPS == 0:
            standing.saved(step)
            clock.now += A_MEASUREMENT
            standing.epoch(HISTORY[: step // EPOCH_STEPS])


def halfway(width: int, *, terminal: bool = True) -> tuple[View, Console, Clock]:
    clock, shown = Clock(), console(width, terminal=terminal)
    view = View("finetune", shown, clock)
    train(view.standing, clock, 25)
    return view, shown, clock


# Rates and times --------------------------------------------------------------------------------


def test_rates_leave_measuring_out_and_what_is_left_has_both() -> None:
    clock = Clock()
    standing = Standing(clock)
    assert (standing.images_per_second, standing.left, standing.epoch_now) == (None, None, 0)
    train(standing, clock, 1)
    assert (standing.images_per_second, standing.left) == (None, None), "one step has no length"
    train(standing, clock, 25, first=1)
    assert standing.images_per_second == BATCH / A_STEP
    assert standing.left == 25 * A_STEP + 3 * A_MEASUREMENT
    assert standing.elapsed == 25 * A_STEP + 2 * A_MEASUREMENT
    assert (standing.epoch_now, standing.epochs) == (3, EPOCHS)
    clock.now += 1.0
    assert standing.left == 25 * A_STEP + 3 * A_MEASUREMENT - 1.0
    clock.now += 1e6
    assert standing.left == 0.0


def test_rates_follow_steps_that_become_slower() -> None:
    clock = Clock()
    standing = Standing(clock)
    train(standing, clock, 9)
    for step in range(10, 110):
        clock.now += 4 * A_STEP
        standing.step(Progress(step, 1000, 1000), {"loss": 1.0, "images": BATCH})
    assert standing.images_per_second == BATCH / (4 * A_STEP)


def test_after_a_resumption_the_pace_is_this_processes_and_the_best_is_all_of_them() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.resumed(20, HISTORY)
    assert standing.checkpoint == 20
    train(standing, clock, 25, first=20)
    assert standing.left == 25 * A_STEP
    assert standing.elapsed == 5 * A_STEP
    assert standing.validated("val_clean") == (0.972, 0.985)
    assert standing.validated("val_nothing") is None


def test_only_the_hour_and_the_machine_are_in_what_has_no_digest() -> None:
    clock = Clock()
    standing = Standing(clock)
    assert standing.measured() == {"seconds": 0.0}
    train(standing, clock, 20)
    assert standing.measured() == {"seconds": 9.0, "images_per_second": 128.0}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.9, "0:00"),
        (7, "0:07"),
        (754.2, "12:34"),
        (3723, "1:02:03"),
        (1e6, "277:46:40"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


# The table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_everything_is_in_the_table_at_any_width(width: int) -> None:
    view, shown, clock = halfway(width)
    clock.now = 1000.0 + 25 * A_STEP + 2 * A_MEASUREMENT
    shown.print(view.picture())
    lines = shown.export_text().splitlines()
    assert max(len(line) for line in lines) <= width
    assert lines[0].split() == ["▸", "finetune", *re.findall(r"[━╸╺]+", lines[0]), "50", "%"]
    text = "\n".join(f"{line}  " for line in lines)
    for label, value in LABELS.items():
        assert re.search(rf"  {label} +{re.escape(value)}  ", text), (label, text)
    assert len(lines) == 1 + len(LABELS) // (1 if width < 62 else 2)


def test_what_is_not_known_yet_is_a_dash_and_what_does_not_apply_is_not_there() -> None:
    clock, shown = Clock(), console()
    view = View("standard", shown, clock)
    train(view.standing, clock, 1)
    shown.print(view.picture())
    text = shown.export_text()
    for label in ("images/s", "val clean", "val robust", "left"):
        assert re.search(rf"{label} +–", text)
    assert "none yet" in text
    assert "sparsity" not in text


def test_a_stage_that_does_not_train_keeps_its_bar() -> None:
    shown = console()
    view = View("prune", shown, Clock())
    for step in range(1, 4):
        view.standing.step(Progress(step, 4, 4), {})
        view.standing.saved(step)
    shown.print(view.picture())
    text = shown.export_text()
    assert "▸ prune" in text
    assert "75 %" in text
    assert "loss" not in text


# Terminals and others ---------------------------------------------------------------------------


def test_on_a_terminal_the_table_goes_with_its_stage_and_gives_the_cursor_back() -> None:
    for interrupted in (False, True):
        shown, clock = console(), Clock()
        try:
            with Screen(shown).running("finetune") as view:
                train(view.standing, clock, 25)
                view.line("something to be told")
                if interrupted:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert interrupted
        out = shown.file.getvalue()  # pyright: ignore
        assert "images/s" in out
        assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l"), "the cursor is shown again"
        # Every line that was drawn is erased, and nothing is written after that.
        drawn = out[out.rindex(" ▸ finetune") :]
        assert drawn.count("\x1b[2K") == drawn.count("\n")
        assert re.search(r"(\x1b\[1A\x1b\[2K)+$", out)


def test_elsewhere_there_is_at_most_a_line_a_minute_when_an_epoch_is_over() -> None:
    clock, shown = Clock(), console(200, terminal=False)
    with Screen(shown).running("finetune"):
        pass
    view = View("finetune", shown, clock)
    train(view.standing, clock, 20)
    view.measured()
    assert shown.export_text() == "", "not a minute yet"
    clock.now += 60.0
    view.measured()
    view.measured()
    assert shown.export_text() == (
        "   finetune     epoch 2/5  loss 0.5000  val clean 97.2 %  val robust 71.4 %  "
        "sparsity 98.76 %  128 images/s  0:00 left\n"
    )
    clock.now += 59.9
    view.measured()
    assert shown.export_text() == ""


def test_on_a_terminal_nothing_is_written_but_the_table() -> None:
    view, shown, clock = halfway(80)
    clock.now += 3600.0
    view.measured()
    assert shown.export_text() == ""


# Sparsity ---------------------------------------------------------------------------------------

IMAGES = make_images()
SCHEDULE = Schedule(epochs=2, batch_size=16)


class Shown(Memory):
    """Compares, after each epoch, what would be shown with the masks as they are."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.standing = net, Standing()
        self.pairs: list[tuple[float | None, float]] = []

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        assert isinstance(metrics["loss"], float), (
            "no tensor, which somebody would have to wait for"
        )
        self.standing.step(progress, metrics)

    def epoch(self, history: list[dict]) -> None:
        self.standing.epoch(history)
        self.pairs.append((self.standing.sparsity, sparsity_of(current_masks(self.net))))


def test_the_sparsity_shown_is_that_of_the_masks_that_are_held() -> None:
    net = make_net()
    weights = prunable_weights(net)
    hold(net, {name: keep_top(w.abs(), w.numel() // 7) for name, w in weights.items()})
    shown = Shown(net)
    fit(net, IMAGES, make_task(steps=1), SCHEDULE, shown)
    assert len(shown.pairs) == 2
    assert all(seen == pytest.approx(true, abs=1e-12) for seen, true in shown.pairs)
    assert 0.8 < shown.pairs[0][1] < 0.9


@pytest.mark.parametrize("method", ["hydra", "harp"])
def test_the_sparsity_shown_is_that_of_the_masks_that_are_searched(method: str) -> None:
    net = make_net()
    shown = Shown(net)
    fit(net, IMAGES, make_task(steps=1), SCHEDULE, shown, get(method)(sparsity=0.8))
    assert len(shown.pairs) == 2
    assert all(seen == pytest.approx(true, abs=1e-12) for seen, true in shown.pairs)


def test_where_nothing_is_masked_no_sparsity_is_claimed() -> None:
    net = make_net()
    standing = Standing()

    class Plain(Memory):
        def epoch(self, history: list[dict]) -> None:
            standing.epoch(history)

    fit(net, IMAGES, make_task(steps=1), SCHEDULE, Plain())
    assert len(standing.history) == 2
    assert standing.sparsity is None
