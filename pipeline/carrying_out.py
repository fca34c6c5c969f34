"""The words `advprune run`, `plan` and `sweep`, whose options are made from the recipe."""

from typing import Any


def run(**values: Any) -> int:
    """Train, harden, prune, fine-tune, quantise, export, attack, judge and bundle a model."""
    from pipeline.commands.running import run

    return run(values)


def plan(**values: Any) -> int:
    """Show the stages of a run, which are cached, and about how long the others would take."""
    from pipeline.commands.running import plan

    return plan(values)


def sweep(**values: Any) -> int:
    """Run a recipe over a grid of settings and seeds, and put all runs on one page."""
    from pipeline.commands.sweep import sweep

    return sweep(values)
