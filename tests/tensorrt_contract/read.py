"""Prints the names and call shapes of the TensorRT bindings that can be imported, as JSON.

Run as a program of its own, with the wheel and stub libraries on its paths. What pybind11 knows of
a call stands in the first lines of its doc string; what of a property can be written, in `fset`.
"""

import importlib
import inspect
import json
import re
import sys
from types import ModuleType, WrapperDescriptorType
from typing import Any

_CALL = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> .+$")
_PREFIX = re.compile(r"tensorrt_bindings\.tensorrt\.|nvinfer1::|nvonnxparser::")
_SPECIAL = ("__init__", "__len__", "__getitem__")


def surface(module: ModuleType) -> dict[str, Any]:
    """Version, classes, functions, and module names for members of enumerations."""
    found: dict[str, Any] = {}
    functions, values = {}, {}
    for name, value in vars(module).items():
        if isinstance(value, type):
            _add(value, found)
        elif name.startswith("_") or isinstance(value, ModuleType):
            continue
        elif callable(value):
            functions[name] = signatures(value)
        elif type(value).__qualname__ in found:
            values[name] = [type(value).__qualname__, value.name]
    return {
        "version": module.__version__,
        "classes": found,
        "functions": functions,
        "values": values,
    }


def _add(kind: type, found: dict[str, Any]) -> None:
    """A class and the classes in it."""
    if kind.__qualname__ in found or not kind.__module__.startswith("tensorrt"):
        return
    content: dict[str, Any] = {
        "bases": [base.__qualname__ for base in kind.__bases__ if _ours(base)],
        "members": None,
        "methods": {},
        "properties": {},
        "nested": {},
    }
    found[kind.__qualname__] = content
    members = getattr(kind, "__members__", None)
    if members is not None:
        content["members"] = {name: int(member) for name, member in members.items()}
        return
    for name, value in vars(kind).items():
        if isinstance(value, WrapperDescriptorType):
            continue  # Python's own, as `__init__` of what only the library makes
        if isinstance(value, type):
            _add(value, found)
            content["nested"][name] = value.__qualname__
        elif isinstance(value, property):
            content["properties"][name] = value.fset is not None
        elif callable(value) and (name in _SPECIAL or not name.startswith("_")):
            content["methods"][name] = signatures(value)


def _ours(kind: type) -> bool:
    return kind.__module__.startswith("tensorrt")


def signatures(function: Any) -> list[list[dict[str, Any]]]:
    """Every overload as its parameters in order, without `self`."""
    lines = (function.__doc__ or "").splitlines()
    calls = [match[1] for match in map(_CALL.match, lines) if match]
    if calls:
        return [[parameter(text) for text in split(call) if _counts(text)] for call in calls]
    return [
        [
            {"name": p.name, "type": "", "default": p.default is not p.empty}
            for p in inspect.signature(function).parameters.values()
        ]
    ]


def _counts(text: str) -> bool:
    return not text.startswith("self:") and text not in ("*", "/")


def parameter(text: str) -> dict[str, Any]:
    """`name: type = default` taken apart; only whether there is a default matters."""
    name, _, rest = text.partition(": ")
    kind, equals, _ = rest.partition(" = ")
    return {"name": name, "type": _PREFIX.sub("", kind), "default": bool(equals)}


def split(call: str) -> list[str]:
    """Parameters at commas that no bracket encloses; defaults print as <Enum.NAME: 0>."""
    parts, depth = [""], 0
    for sign in call:
        depth += (sign in "([{<") - (sign in ")]}>")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


if __name__ == "__main__":
    json.dump(surface(importlib.import_module("tensorrt_bindings")), sys.stdout)
