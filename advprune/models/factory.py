"""A user's own network: `pkg.mod:factory`, found on the import path or in the current folder."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from advprune.errors import Incompatible, NotFound, Refused


def create(spec: str, classes: int, channels: int) -> nn.Module:
    """Import the factory and call it with what its signature takes.

    A factory may name `num_classes` and `in_channels`; one that takes `**kwargs` gets
    `num_classes`, which is what factories that pass their arguments on understand.

    Args:
        spec: `pkg.mod:factory`. Importing runs the module's code: name only modules you trust.

    Raises:
        NotFound: the module cannot be imported, or has no such attribute.
        Refused: the attribute is no factory of networks.
        Incompatible: the call fails.
    """
    with _current_folder_importable():
        factory = _find(spec)
        try:
            arguments = _accepted(factory, num_classes=classes, in_channels=channels)
            net = factory(**arguments)
        except (Exception, SystemExit) as error:
            raise Incompatible(
                f"model {spec!r}: the call for {classes} classes and {channels} channels failed: "
                f"{_reason(error)}; give it num_classes and in_channels, defaults for the rest"
            ) from error
    if not isinstance(net, nn.Module):
        raise Refused(
            f"model {spec!r}: must return a torch.nn.Module, returned {type(net).__name__}"
        )
    return net


def source_digest(spec: str) -> str | None:
    """SHA-256 of the file of the factory's module; None where it has none.

    Raises:
        NotFound, Refused: as `create`.
    """
    with _current_folder_importable():
        _find(spec)
    file = getattr(sys.modules[spec.partition(":")[0]], "__file__", None)  # built-in ones have none
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _find(spec: str) -> Callable[..., Any]:
    module_name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    # Importing runs code that is not ours, so anything may come out; a script without a guard even
    # ends the process, and with 0.
    except (Exception, SystemExit) as error:
        raise NotFound(
            f"model {spec!r}: cannot import {module_name!r}: {_reason(error)}; "
            "write pkg.mod:factory, with pkg in the current folder or on PYTHONPATH"
        ) from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise NotFound(f"model {spec!r}: {module_name!r} has no {attribute!r}; check the spelling")
    if not callable(factory):
        raise Refused(f"model {spec!r}: {attribute!r} is not callable; name a function or a class")
    return factory


def _accepted(factory: Callable[..., Any], **offered: int) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    accepted = {name for name, p in parameters.items() if p.kind in by_keyword}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        accepted.add("num_classes")
    return {name: value for name, value in offered.items() if name in accepted}


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """An installed command has its own folder on the path instead of the user's.

    At the end of the path, so that a folder named like an installed package does not hide it.
    """
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
