"""A `tensorrt` made from a surface: whatever the surface does not have or permit raises.

Names that are unknown, assignments to what is read-only, wrong numbers, keywords and types of
arguments all raise what pybind11 raises. What a call then does is not in a surface: it is looked up
in `behaviour`, and a call without behaviour raises too.
"""

import types
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

Behaviour = MutableMapping[str, Callable[..., Any]]
Signature = list[dict[str, Any]]


class Strict:
    """The root of all classes: instances have no attributes but those of their class."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(f"{type(self).__name__}: No constructor defined!")


class Member:
    """A member of an enumeration: an integer only where it is asked to be one."""

    def __init__(self, owner: str, name: str, value: int) -> None:
        self._owner, self.name, self.value = owner, name, value

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and int(other) == self.value

    def __hash__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"<{self._owner}.{self.name}: {self.value}>"


def strict_module(surface: Mapping[str, Any], behaviour: Behaviour) -> Any:
    """A module `tensorrt` with exactly this surface.

    Args:
        surface: of one version, as `read.py` prints it.
        behaviour: "Class.method" -> function of the instance and all arguments by keyword,
            "Class.property" -> function of the instance, "function" -> function of the arguments.
            May be filled later. A property without one gives what was assigned to it.
    """
    module: Any = types.ModuleType("tensorrt")
    module.__version__ = surface["version"]
    kinds: dict[str, type] = {}
    for name in surface["classes"]:
        _make_class(name, surface["classes"], kinds, behaviour)
    for name, content in surface["classes"].items():
        for inner, target in content["nested"].items():
            setattr(kinds[name], inner, kinds[target])
        if "." not in name:
            setattr(module, name, kinds[name])
    for name, (kind, member) in surface["values"].items():
        setattr(module, name, getattr(kinds[kind], member))
    for name, signatures in surface["functions"].items():
        setattr(module, name, _function(name, signatures, kinds, behaviour))
    return module


def new(kind: type, **state: Any) -> Any:
    """An instance that only the library can make."""
    instance: Any = object.__new__(kind)
    instance.state = state
    return instance


def _make_class(
    name: str, classes: Mapping[str, Any], kinds: dict[str, type], behaviour: Behaviour
) -> type:
    """A class, after its bases."""
    if name in kinds:
        return kinds[name]
    content = classes[name]
    plain = name.rpartition(".")[2]
    if content["members"] is not None:
        kind = type(plain, (Member,), {})
        for member, value in content["members"].items():
            setattr(kind, member, kind(plain, member, value))
        kinds[name] = kind
        return kind
    bases = [_make_class(base, classes, kinds, behaviour) for base in content["bases"]]
    space: dict[str, Any] = {"__slots__": ()}
    for method, signatures in content["methods"].items():
        space[method] = _method(name, method, signatures, kinds, behaviour)
    for attribute, is_writable in content["properties"].items():
        space[attribute] = _property(name, attribute, is_writable, behaviour)
    if name == "IHostMemory":
        # Its buffer is no member that a surface could list.
        space["__bytes__"] = lambda self: self.state["bytes"]
    kinds[name] = type(plain, tuple(bases) or (Strict,), space)
    return kinds[name]


def _method(
    owner: str,
    name: str,
    signatures: list[Signature],
    kinds: Mapping[str, type],
    behaviour: Behaviour,
) -> Callable[..., Any]:
    title = f"{owner}.{name}"

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = _bind(title, signatures, args, kwargs, kinds)
        if name == "__init__":
            self.state = arguments
            return behaviour.get(title, _nothing)(self, **arguments)
        return _behaviour(title, behaviour)(self, **arguments)

    return call


def _function(
    name: str, signatures: list[Signature], kinds: Mapping[str, type], behaviour: Behaviour
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = _bind(name, signatures, args, kwargs, kinds)
        return _behaviour(name, behaviour)(**arguments)

    return call


def _property(owner: str, name: str, is_writable: bool, behaviour: Behaviour) -> property:
    title = f"{owner}.{name}"

    def read(self: Any) -> Any:
        if title in behaviour:
            return behaviour[title](self)
        if name in self.state:
            return self.state[name]
        return _behaviour(title, behaviour)(self)

    def write(self: Any, value: Any) -> None:
        self.state[name] = value

    return property(read, write if is_writable else None)


def _nothing(*_: Any, **__: Any) -> None: ...


def _behaviour(title: str, behaviour: Behaviour) -> Callable[..., Any]:
    if title not in behaviour:
        raise NotImplementedError(f"tensorrt.{title} is there, but this stand-in gives it no life")
    return behaviour[title]


def _bind(
    title: str,
    signatures: list[Signature],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    kinds: Mapping[str, type],
) -> dict[str, Any]:
    """Arguments by name, as the first overload that takes them has it."""
    for signature in signatures:
        given = dict(zip((p["name"] for p in signature), args, strict=False))
        if len(args) > len(signature) or given.keys() & kwargs.keys():
            continue
        # pybind11 calls a parameter that has no name, and so no keyword, arg0.
        if any(name.startswith("arg") and name[3:].isdigit() for name in kwargs):
            continue
        given |= kwargs
        names = {p["name"] for p in signature}
        needed = {p["name"] for p in signature if not p["default"]}
        if not needed <= given.keys() <= names:
            continue
        if all(_fits(given[p["name"]], p["type"], kinds) for p in signature if p["name"] in given):
            return given
    raise TypeError(
        f"tensorrt.{title}(): incompatible function arguments {args} {kwargs}; takes "
        + " or ".join(str([p["name"] for p in signature]) for signature in signatures)
    )


def _fits(value: Any, kind: str, kinds: Mapping[str, type]) -> bool:
    """Whether pybind11 would convert the value; types that nobody checks here always fit."""
    if kind == "Dims" and isinstance(value, tuple | list):
        return all(isinstance(size, int) for size in value)
    if kind in kinds:
        # A subclass that forgets the constructor of its base has no object behind it.
        return isinstance(value, kinds[kind]) and (
            isinstance(value, Member) or hasattr(value, "state")
        )
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("int", "typing.SupportsInt"):
        return hasattr(value, "__index__") and not isinstance(value, Member)
    if kind in ("buffer", "typing_extensions.Buffer", "collections.abc.Buffer"):
        return isinstance(value, bytes | bytearray | memoryview)
    if kind in ("tuple", "list"):
        return type(value).__name__ == kind
    return True
