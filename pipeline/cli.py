"""The words: `advprune COMMAND`. Nothing heavier than typer is imported before a command runs."""

import errno
import inspect
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.arguments import LATEST, Json, Run, Runs
from pipeline.bundling import bundle
from pipeline.carrying_out import plan, run, sweep
from pipeline.comparing import board, compare
from pipeline.datasets import data
from pipeline.describing import methods
from pipeline.exchanging import apb
from pipeline.exporting import export
from pipeline.judging import gate
from pipeline.modelling import models
from pipeline.options import (
    PLAN_OPTIONS,
    RECIPE_OPTIONS,
    RUN_OPTIONS,
    SWEEP_OPTIONS,
    Option,
    method_options,
)
from pipeline.starting import init

app = typer.Typer(
    help="Prune vision models robustly, export them to 8 bits, and attack what ships.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
_LONGEST_WORD = 1000  # that a refusal quotes: a value may have any length
# How often a thread of torch looks for work before it sleeps. By default so often that two threads
# on a busy core are slower than one; not so with this number, and on idle cores it costs nothing.
_SPINS = "10000"


@app.command()
def verify(
    run: Run = LATEST,
    suite: Annotated[
        str | None, typer.Option(help="Attack as hard as quick, standard or release does.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Attack the exported engines of a run anew: as its report did, and compare; or by a suite."""
    from pipeline.commands.verify import verify

    return verify(run, suite, as_json)


@app.command()
def attack(
    target: Annotated[str, typer.Argument(help="FILE.onnx, a checkpoint, or package.mod:factory.")],
    arch: Annotated[str | None, typer.Option(help="Network of a checkpoint.")] = None,
    cast: Annotated[
        bool, typer.Option("--cast", help="Take weights in another precision, as float16.")
    ] = False,
    data: Annotated[str | None, typer.Option(help="digits, folder:PATH, ...: its tests.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where downloaded data sets are.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize and crop to this side.")] = None,
    limit_test: Annotated[int | None, typer.Option(help="Use that many test images.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius of the attack, e.g. 8/255.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2.")] = None,
    suite: Annotated[str, typer.Option(help="quick, standard or release.")] = "standard",
    attack: Annotated[
        list[str] | None,
        typer.Option(help="This attack instead of a suite, e.g. apgd:steps=20; repeatable."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="ours; or apb, for the Adversarial Pruning Benchmark's too.")
    ] = "ours",
    method: Annotated[str | None, typer.Option(help="What pruned it, for the benchmark.")] = None,
    structured: Annotated[
        bool, typer.Option("--structured", help="Filters or channels are gone, for the benchmark.")
    ] = False,
    trials: Annotated[int, typer.Option(help="Settings that ho_fmn tries.")] = 32,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="E.g. --set verify.steps=100.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result here, as JSON.")] = None,
    as_json: Json = False,
) -> int:
    """Attack any model: an ONNX file, a checkpoint of ours or of torch, a factory."""
    values = dict(locals())
    from pipeline.commands.attack import attack as run_attack

    return run_attack(values)


@app.command()
def bench(
    run: Run = LATEST,
    runtime: Annotated[
        str | None,
        typer.Option(help="ort, ort-cuda, ort-tensorrt, openvino or tensorrt, for every engine."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="That one call may use.")] = 1,
    single_stream: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds of MLPerf's single stream for each engine, besides."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all samples here, as JSON.")] = None,
    as_json: Json = False,
) -> int:
    """Measure size, accuracy, latency, throughput and memory of the exported engines of a run."""
    from pipeline.commands.bench import bench

    return bench(run, runtime, threads, single_stream, out, as_json)


app.command()(export)
app.command()(gate)
app.add_typer(bundle, name="bundle")


@app.command()
def report(
    run: Run = LATEST,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in this system's browser, too.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Print the report of a run and say where its page is."""
    from pipeline.commands.results import report

    return report(run, show, as_json)


app.add_typer(apb, name="apb")
app.command()(board)
app.command()(compare)


app.command()(methods)


@app.command()
def attacks(as_json: Json = False) -> int:
    """List the attacks."""
    from pipeline.commands.listing import attacks

    return attacks(as_json)


app.add_typer(data, name="data")
app.command()(init)


app.command()(models)


@app.command()
def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> int:
    """Say what this machine has, what it lacks, and how to get that."""
    from pipeline.commands.doctor import doctor

    return doctor(runs, as_json)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line for a refusal, its exit code, and a traceback only with --debug."""
    words = sys.argv[1:] if arguments is None else arguments
    # The switch that turns torch.load's safe default off has no business in this process.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)  # read when torch is loaded
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a sign must not end a run.
            stream.reconfigure(errors="replace")
    try:
        _add_generated_commands(words)
        code = app(words, standalone_mode=False) or 0
    except BaseException as error:  # a request to stop is no Exception
        code = getattr(error, "exit_code", None)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            code = 2  # only words that were given are that long
        if debug or code is None:
            raise
        message = error.format_message() if hasattr(error, "format_message") else str(error)  # pyright: ignore
        _complain(message, code, words)
    else:
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            _complain("interrupted; the same command goes on where this one stopped", code, words)
        sys.exit(code)


def _complain(message: str, code: int, words: list[str]) -> None:
    words_of_it = (
        w if len(w) < _LONGEST_WORD else f"{w[:80]}...{w[-80:]}" for w in message.split()
    )
    line = " ".join(words_of_it)
    if "--json" in words:
        sys.stdout.write(json.dumps({"error": line, "exit_code": code}) + "\n")
    else:
        sys.stderr.write(f"advprune: {line}\n")
    sys.exit(code)


def _add_generated_commands(words: list[str]) -> None:
    """`run`, `plan` and `sweep` take the recipe's options, and those of the method named."""
    options = [*RECIPE_OPTIONS, *method_options(words)]
    generated = ("run", "plan", "sweep")  # anew, where this process has been asked before
    app.registered_commands[:] = [c for c in app.registered_commands if c.name not in generated]
    app.command("run")(_with_options(run, [*options, *RUN_OPTIONS]))
    app.command("plan")(_with_options(plan, [*options, *PLAN_OPTIONS]))
    app.command("sweep")(_with_options(sweep, [*options, *SWEEP_OPTIONS]))


def _declared(option: Option) -> Any:
    return typer.Option(*option.flags, help=option.help, autocompletion=option.complete)


def _with_options(body: Callable[..., int], options: list[Option]) -> Callable[..., int]:
    """The function as typer must see it: one keyword parameter per option."""

    def command(**values: Any) -> int:
        return body(**values)

    parameters = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[option.kind, _declared(option)],
        )
        for option in options
    ]
    command.__name__ = body.__name__
    command.__doc__ = body.__doc__
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
