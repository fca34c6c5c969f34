"""Spans say where the time went: every moment once, to the innermost name; nothing if unheard."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from advprune import spans
from advprune.spans import Times, span


@pytest.fixture(autouse=True)
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is a second further on at every look."""
    clock: Iterator[int] = itertools.count()
    monkeypatch.setattr(spans.time, "perf_counter", lambda: float(next(clock)))


def test_nobody_listens_and_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "record_function", None)
    monkeypatch.setattr(spans.time, "perf_counter", None)
    with span("attack"), span("engine"):
        pass


def test_time_belongs_to_the_innermost_span_and_adds_up() -> None:
    times = Times()
    with times.listening():
        with span("loss"):
            with span("attack"):
                pass
            with span("attack"):
                pass
        with span("backward"):
            pass
    # Eight borders make nine stretches of a second each, but for the first and the last: five
    # inside of "loss", of which two are the attacks'.
    assert times.seconds == {"loss": 3.0, "attack": 2.0, "backward": 1.0, "other": 3.0}


def test_a_span_that_is_left_by_an_exception_is_left() -> None:
    times = Times()
    with times.listening(), pytest.raises(ZeroDivisionError), span("loss"):
        raise ZeroDivisionError
    with times.listening(), span("data"):
        pass
    assert times.seconds == {"other": 4.0, "loss": 1.0, "data": 1.0}


def test_a_function_is_named_by_a_span_at_every_call() -> None:
    @span("validation")
    def validate() -> None:
        return None

    times = Times()
    with times.listening():
        validate()
        validate()
    assert times.seconds["validation"] == 2.0


def test_threads_share_the_time_and_the_one_that_waits_for_them_has_none() -> None:
    first_is_in, second_is_done = threading.Event(), threading.Event()

    def first() -> None:
        with span("square"):
            first_is_in.set()
            assert second_is_done.wait(10)

    def second() -> None:
        assert first_is_in.wait(10)
        with span("pgd"):
            pass
        second_is_done.set()

    times = Times()
    with times.listening(), span("verify"):
        workers = [threading.Thread(target=work) for work in (first, second)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    # The first one alone, both, the first one alone; before and after them the caller.
    assert times.seconds == {"square": 2.5, "pgd": 0.5, "verify": 2.0, "other": 2.0}


def test_other_work_can_be_kept_out_of_the_spans() -> None:
    times = Times()
    with times.listening(), span("loss"):
        times.put_on("profiling")
        with span("attack"):
            pass
        times.put_on(None)
    assert times.seconds == {"other": 2.0, "loss": 2.0, "profiling": 3.0}


def test_a_gpu_is_waited_for_before_every_look_at_the_clock() -> None:
    waits: list[int] = []
    times = Times(lambda: waits.append(1))
    with times.listening(), span("attack"):
        pass
    assert len(waits) == 3
