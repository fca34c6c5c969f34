"""A profile says where the time of a run went, and changes nothing of what the run makes."""

import gzip
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stage_runs import SMALL, Runner, with_settings
from torch import Tensor

import pipeline.run
from advprune.peak import Peak
from pipeline import profile_report
from pipeline.plan import plan
from pipeline.profile import PROFILING, TRAINING, Profile
from pipeline.profile_report import CACHED, hints, show, to_markdown, write_profile
from pipeline.run import Outcome, execute
from pipeline.screen import Screen
from pipeline.watch import Watch

STAGES = ("data", "standard", "adversarial", "prune")
EPOCH = 13  # steps
STEPS = {"standard": 39, "adversarial": 13, "prune": 13}
RECIPE = with_settings({"standard.epochs": 3, "prune.epochs": 1}, SMALL)


@pytest.fixture(scope="module", autouse=True)
def known_peak() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile_report, "measure", lambda device: Peak(1e11, 4e11, 1e10))
        patch.setattr(pipeline.run, "plan", lambda recipe: plan(recipe)[: len(STAGES)])
        yield


def small_run(root: Path, profile: Profile | None) -> Outcome:
    return execute(RECIPE, {}, root, Screen(Console(file=StringIO())), profile)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, dict[str, Any]]:
    profile = Profile("cpu")
    outcome = small_run(tmp_path_factory.mktemp("profiled"), profile)
    return outcome, write_profile(profile, outcome.artifacts, outcome.folder)


def test_every_file_is_the_same_with_and_without(
    profiled: tuple[Outcome, dict[str, Any]], tmp_path: Path
) -> None:
    watched, plain = profiled[0].artifacts, small_run(tmp_path, None).artifacts
    assert list(watched) == list(plain) == list(STAGES)
    for stage in STAGES:
        assert watched[stage].manifest["files"] == plain[stage].manifest["files"]
        assert watched[stage].manifest["key"] == plain[stage].manifest["key"]


def test_the_seconds_of_a_stage_are_those_of_its_spans(
    profiled: tuple[Outcome, dict[str, Any]],
) -> None:
    outcome, document = profiled
    assert json.loads((outcome.folder / "profile" / "profile.json").read_text()) == document
    assert [stage["name"] for stage in document["stages"]] == list(STAGES)
    for stage in document["stages"]:
        spans = stage["spans"].values()
        assert sum(span["seconds"] for span in spans) == pytest.approx(stage["seconds"])
        assert sum(span["share"] for span in spans) == pytest.approx(1.0)
        # What the store adds to a stage, digests and renames, is in the profile alone.
        assert stage["seconds"] >= outcome.artifacts[stage["name"]].manifest["seconds"] - 1e-3
        assert stage["memory_bytes"] > 1e8
    names = {stage["name"]: set(stage["spans"]) for stage in document["stages"]}
    steps = {"data", "loss", "backward", "optimiser", "validation", "other", PROFILING}
    assert names["data"] == {"other"}
    assert names["standard"] == steps
    assert names["adversarial"] == steps | {"attack"}
    assert names["prune"] == steps | {"attack", "masks"}


def test_the_rate_of_training_is_that_of_the_steps_that_were_timed(
    profiled: tuple[Outcome, dict[str, Any]],
) -> None:
    stages = {stage["name"]: stage for stage in profiled[1]["stages"]}
    assert stages["data"]["training"] is None
    for name, steps in STEPS.items():
        training = stages[name]["training"]
        # One in every epoch was counted, and three were traced.
        assert training["steps"] == steps - steps // EPOCH - 3
        spans = stages[name]["spans"]
        assert training["seconds"] == pytest.approx(
            sum(spans[span]["seconds"] for span in TRAINING if span in spans)
        )
        operations = sum(training["operations"].values())
        assert training["operations_per_second"] == pytest.approx(operations / training["seconds"])
        rates = {"float32": 1e11, "bfloat16": 4e11}
        ideal = sum(n / rates[kind] for kind, n in training["operations"].items())
        assert training["share_of_peak"] == pytest.approx(ideal / training["seconds"], rel=1e-6)
    # One step of PGD is one forward and one backward more, to the images alone.
    clean, robust = (
        sum(stages[name]["training"]["operations"].values()) / stages[name]["training"]["steps"]
        for name in ("standard", "adversarial")
    )
    assert 1.6 * clean < robust < 1.7 * clean


def test_a_trace_shows_the_spans_of_steps_in_the_middle(
    profiled: tuple[Outcome, dict[str, Any]],
) -> None:
    folder = profiled[0].folder / "profile"
    assert {path.name for path in folder.iterdir()} == {
        "profile.json",
        "profile.md",
        *(f"{stage}.trace.json.gz" for stage in STEPS),
    }
    for stage in STEPS:
        trace = json.loads(gzip.decompress((folder / f"{stage}.trace.json.gz").read_bytes()))
        names = [event.get("name") for event in trace["traceEvents"] if event.get("ph") == "X"]
        shown = {"data", "loss", "backward", "optimiser"}
        shown |= {"attack"} if stage != "standard" else set()
        shown |= {"masks"} if stage == "prune" else set()
        assert {name: names.count(name) for name in shown} == dict.fromkeys(shown, 3)


def test_cached_stages_say_so_and_an_older_profile_goes(
    profiled: tuple[Outcome, dict[str, Any]], tmp_path: Path
) -> None:
    first, again = profiled[0], Profile("cpu")
    outcome = small_run(first.folder.parent, again)
    stale = tmp_path / "profile" / "prune.trace.json.gz"
    stale.parent.mkdir()
    stale.touch()
    document = write_profile(again, outcome.artifacts, tmp_path)
    assert document["stages"] == [{"name": name, "cached": True} for name in STAGES]
    assert document["peak"] is None
    assert hints(document) == []
    assert to_markdown(document).count(CACHED) == len(STAGES)
    assert not stale.exists()


def test_a_stage_that_goes_on_is_timed_from_there(tmp_path: Path) -> None:
    class Interrupting(Watch):
        def save(self, step: int, tensors: dict[str, Tensor], history: list[dict]) -> None:
            super().save(step, tensors, history)
            if len(history) == 1:
                raise KeyboardInterrupt

    runner, profile = Runner(RECIPE, tmp_path), Profile("cpu")
    runner.build("data")
    with pytest.raises(KeyboardInterrupt), profile.stage("standard") as watched:
        runner.build("standard", lambda *given: watched(Interrupting(*given)))
    assert profile.stages == {}
    with profile.stage("standard") as watched:
        runner.build("standard", lambda *given: watched(Watch(*given)))
    assert profile.stages["standard"].steps == 13 - 1 - 3
    assert profile.stages["standard"].trace


def test_the_table_names_what_took_longest_and_where_to_look() -> None:
    def stage(name: str, trace: str | None, **seconds: float) -> dict[str, Any]:
        total = sum(seconds.values())
        spans = {k: {"seconds": s, "share": s / total} for k, s in seconds.items()}
        known = {"memory_bytes": 7e8, "training": None, "trace": trace}
        return {"name": name, "cached": False, "seconds": total, "spans": spans, **known}

    train = stage("finetune", "finetune.trace.json.gz", attack=6.0, backward=3.0, other=1.0)
    train["training"] = {"operations_per_second": 5e10, "share_of_peak": 0.5}
    verify = stage("verify", None, other=4.0, engine=1.0)
    document = {
        "device": "cpu",
        "threads": 2,
        "peak": vars(Peak(1e11, 4e11, 1e10)),
        "stages": [{"name": "data", "cached": True}, train, verify],
    }
    screen = StringIO()
    show(document, Console(file=screen, width=120))
    _, cached, trained, verified, peak, hint = screen.getvalue().splitlines()
    assert CACHED in cached
    assert " ".join(trained.split()) == (
        "finetune 10.0 attack 60 %, backward 30 %, other 10 % 50.0 50.0 % 700 MB"
    )
    assert "other 80 %, engine 20 %" in verified
    assert "2 threads: fp32 100 and bf16 400 GFLOP/s" in peak
    assert hint == (
        "most of the time: finetune, 10.0 of 15.0 s (67 %), first of all attack, 6.0 s; "
        "open finetune.trace.json.gz in ui.perfetto.dev"
    )
    verify["seconds"] = 30.0
    assert hints(document)[1] == (
        "most of the time: verify, 30.0 of 40.0 s (75 %), first of all engine, 1.0 s"
    )
    assert "| finetune | 10.0 | attack 60 %, backward 30 %, other 10 % | 50.0 |" in to_markdown(
        document
    )
