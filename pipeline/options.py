"""The options of `run` and `plan`: the recipe's main fields, and those of the named method."""

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pipeline import completion
from pipeline.capacity import ASSUMED, LINKS


@dataclass(frozen=True)
class Option:
    """One command-line option; a default of None leaves the value to preset, file or environment.

    Args:
        key: dotted field of the recipe, or "" for options of the command itself.
        complete: what the shell offers for the beginning of a value.
    """

    name: str
    kind: Any
    help: str
    key: str = ""
    default: Any = None
    short: str = ""
    complete: Callable[[str], list[str]] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        long = "--" + self.name.removeprefix("as_").replace("_", "-")
        return (long, self.short) if self.short else (long,)


def _recipe(name: str, kind: type, help: str, short: str = "") -> Option:
    return Option(name, kind | None, help, name, None, short, _COMPLETED.get(name))


# Options whose values the shell knows; `completion` offers them.
_COMPLETED = {
    "method": completion.methods,
    "preset": completion.presets,
    "norm": completion.one_of("linf", "l2"),
    "precision": completion.one_of("auto", "fp32", "bf16"),
}


RECIPE_OPTIONS: list[Option] = [
    _recipe("method", str, "Pruning method; see `advprune methods`. Shows its options.", "-m"),
    _recipe("sparsity", float, "Share of weights removed, 0 <= s < 1.", "-s"),
    _recipe("compression", float, "All parameters over those left; instead of --sparsity."),
    _recipe(
        "preset",
        str,
        "digits, subset, cifar10, svhn or imagenet; the data's own if not given.",
    ),
    _recipe("data", str, "digits, folder:PATH, or a torchvision set; see `advprune data`."),
    _recipe("data_dir", Path, "Where downloaded data sets are."),
    _recipe("extra_data", Path, "Folder of more training images, in the same classes."),
    _recipe("model", str, "A name of `advprune models`, or package.module:factory."),
    _recipe("weights", Path, "Begin from these: .safetensors, .pt or .pth of the same model."),
    _recipe("freeze", list[str], "Layers that keep their weights: glob, or stem; repeatable."),
    _recipe("normalize", str, "By the data's mean and std, imagenet's, or none."),
    _recipe("objective", str, "natural, pgd, trades, mart, mad, fgsm-rs, n-fgsm or free."),
    _recipe("eps", str, "Radius of the attack, e.g. 0.15 or 8/255."),
    _recipe("norm", str, "Of the attack: linf (each pixel by itself) or l2."),
    _recipe("seed", int, "Seed of everything that is random."),
    _recipe("device", str, "auto, cpu, cuda or cuda:N."),
    _recipe("precision", str, "Of layers in training: fp32, bf16, or auto: as the device has it."),
    _recipe("limit_train", int, "Use that many training images, all classes alike."),
    _recipe("limit_test", int, "Use that many test images, all classes alike."),
    _recipe("image_size", int, "Resize and crop to this side."),
    _recipe("convert", str, "rgb: turn grey, CMYK, transparent and 16-bit images into RGB."),
    Option("skip_bad", bool, "Leave out damaged images, at most 0.1 %.", "skip_bad", False),
    Option("stream", bool, "Leave the images to train on in their files.", "stream", False),
    _recipe("data_workers", int, "Processes that decode streamed images; a core each."),
    Option(
        "baseline", Path | None, "Verdicts that the gate holds the run against.", "gate.baseline"
    ),
    Option("quantize", str | None, "8 bits by ptq, by qat, or auto: the better.", "quantize.how"),
    Option("uint8_head", bool, "Also export models that take uint8 NHWC.", "uint8_head", False),
    Option("fp16", bool, "Also export, attack and time a float16 model.", "fp16", False),
    Option("recipe", Path | None, "TOML file of settings.", short="-c"),
    Option("set", list[str], "Any setting, e.g. --set prune.epochs=5; repeatable.", default=()),
    Option("runs", Path, "Folder of all runs.", default=Path("runs")),
    Option("as_json", bool, "Print one JSON document instead of text.", default=False),
]

_STORAGE = Option("storage", str | None, "Also find and keep stages there, as s3://BUCKET/PATH.")

_NPROC = Option("nproc", int, "Processes of a run, each on a GPU of its own.", default=1)

# Of `run` alone: a plan has nothing to time or to lose.
RUN_OPTIONS: list[Option] = [
    _NPROC,
    _STORAGE,
    Option("profile", bool, "Write where the time went to RUN/profile.", default=False),
    Option(
        "checkpoint_steps", int | None, "Keep a checkpoint every so many steps, not only epochs."
    ),
    Option("track", list[str], "Also tell tensorboard or mlflow; repeatable.", default=()),
]

# Of `plan` alone: any of them asks what more ranks and images would cost.
PLAN_OPTIONS: list[Option] = [
    Option("gpus", int | None, "Estimate training on so many, which share every batch."),
    Option("images", int | None, "Estimate training on so many images, not on those there are."),
    Option(
        "link",
        str | None,
        f"Between the GPUs: {', '.join(LINKS)}, or GB/s; {ASSUMED} if not given.",
        complete=completion.one_of(*LINKS),
    ),
]

# Of `sweep` alone.
SWEEP_OPTIONS: list[Option] = [
    _NPROC,
    Option("grid", list[str], "KEY=VALUE,VALUE: a run for each; repeatable.", default=()),
    Option("seeds", int | None, "Seeds 0, 1, ... of every cell, so many."),
    Option("workers", int, "Cells at a time on one machine, which share its cores.", default=1),
    Option("retries", int, "Attempts more for a cell that died.", default=1),
    _STORAGE,
    Option("backend", str, "local, ray or slurm: what runs the cells.", default="local"),
    Option("gpus_per_cell", float | None, "GPUs of a cell, as 0.5, under ray or slurm."),
    Option("slurm", list[str], "KEY=VALUE for submitit, as partition=gpu; repeatable.", default=()),
]


def method_options(words: list[str]) -> list[Option]:
    """The fields of the method that the command line names, if it names one.

    Raises:
        Refused: no such method.
    """
    name = _named_method(words)
    if name is None:
        return []
    from advprune.method import get

    fields = get(name).model_fields
    return [
        Option(
            field,
            _plain(info.annotation) | None,
            f"[{name}] {info.description}{choices_of(info.annotation)} (default {info.default})",
            key=f"options.{field}",
        )
        for field, info in fields.items()
        if field != "sparsity"
    ]


def _named_method(words: list[str]) -> str | None:
    """The value of --method, before the command line can be parsed for good."""
    if not words or words[0] not in ("run", "plan", "sweep"):
        return None
    named = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--method" and equals:
            named = value
        elif word in ("--method", "-m"):
            named = following
        elif word.startswith("-m"):
            named = word.removeprefix("-m")
    return named


def _plain(annotation: Any) -> Any:
    """The type to parse with; pydantic checks the rest."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not types.NoneType]
        return _plain(inner[0])
    return str if get_origin(annotation) is Literal else annotation


def choices_of(annotation: Any) -> str:
    """ ": a, b, c" for an option with fixed choices, "" for any other."""
    return f": {', '.join(get_args(annotation))}" if get_origin(annotation) is Literal else ""
