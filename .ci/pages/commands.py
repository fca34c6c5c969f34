"""The page of the command line: every command with its arguments and options."""

from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from pages.markdown import MADE, code, table
from pipeline import cli

_INTRODUCTION = """# Commands

`.venv/bin/advprune` after `make setup`; `make` alone lists the shorter words of the Makefile. Every
command has `--json`: one document on standard output and nothing else there. Every command has
`--help`, and `--debug` for a traceback in place of the one line of a refusal.

Exit codes: 0 pass; 2 usage; 10 gate failed; 11 gate inconclusive or evaluation invalid; 12 baseline
missing or not comparable; 65 bad data; 66 input missing; 69 device or package missing; 71 out of
memory; 73/74 cannot create or write; 75 busy; 78 incompatible; 143 terminated, to be gone on with.

[Completion](quick-start.md#completion) of commands, options and methods works in bash, zsh and
fish.

"""
_METHOD = (
    "With `--method NAME` the options of that method join these: see "
    "[its page](methods/README.md).\nEverything else that can be set is in "
    "[settings.md](settings.md).\n"
)
_KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_SAID = {"as_json", "help"}  # once, above


def tree(words: list[str] | None = None) -> TyperGroup:
    """The whole command line as typer builds it; `words` may name a method, for its options."""
    cli._add_generated_commands(words or [])
    group = get_command(cli.app)
    assert isinstance(group, TyperGroup)
    return group


def every(group: TyperGroup, above: str = "advprune") -> dict[str, TyperCommand]:
    """Words -> command, those of a group after the others, in the order of their names."""
    found: dict[str, TyperCommand] = {}
    for name, command in sorted(group.commands.items()):
        words = f"{above} {name}"
        if isinstance(command, TyperGroup):
            found |= every(command, words)
        elif isinstance(command, TyperCommand):
            found[words] = command
    return found


def page() -> str:
    commands = every(tree())
    listed = "".join(f"- [`{words}`](#{words.replace(' ', '-')})\n" for words in commands)
    sections = [_section(words, command) for words, command in commands.items()]
    return f"{MADE}\n\n{_INTRODUCTION}{listed}{''.join(sections)}"


def _section(words: str, command: TyperCommand) -> str:
    parameters = [p for p in command.params if p.name not in _SAID]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    rows = [_row(p) for p in [*arguments, *(p for p in parameters if p not in arguments)]]
    usage = " ".join([words, *(_usage(argument) for argument in arguments)])
    text = f"\n## {words}\n\n{command.help}\n\n    {usage}\n"
    if rows:
        text += f"\n{table(['', 'default', 'what it is'], rows)}"
    return f"{text}\n{_METHOD}" if words in ("advprune run", "advprune plan") else text


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> list[str]:
    help = parameter.help or ""
    if parameter.param_type_name == "argument":
        return [f"`{_usage(parameter)}`", code(parameter.default), help]
    kind = "" if parameter.is_flag else f" {_kind(parameter)}"
    flags = ", ".join(f"`{flag}`" for flag in parameter.opts[1:])
    first = f"`{parameter.opts[0]}{kind}`" + (f", {flags}" if flags else "")
    default = "" if parameter.is_flag else code(parameter.default)
    return [first, "must be given" if parameter.required else default, help]


def _kind(parameter: Any) -> str:
    if parameter.metavar:
        return parameter.metavar
    annotation = parameter.type_descriptor.annotation
    return _KINDS.get(annotation, "TEXT")
