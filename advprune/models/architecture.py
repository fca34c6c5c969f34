"""What is needed to build a network again: plain values that fit in a JSON file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from advprune.errors import BadData

# Far above any classifier of images, far below what would exhaust memory when a file lies.
_MOST_CLASSES = 100_000
_LARGEST_SIDE = 1024
_MOST_CHANNELS = 1 << 20
# The standard deviation of pixels in [0, 1]; float32 still divides by the smallest.
_SMALLEST_STD = 1e-6
_OPTIONAL = {"widths", "frozen"}


@dataclass(frozen=True)
class Architecture:
    """A network by name, with the images it sees.

    Attributes:
        model: a name of `names()`, `torchvision:NAME`, `timm:NAME`, or `pkg.mod:factory`.
        classes: K, at least 2.
        shape: (C, H, W) of one image.
        mean, std: per channel, in [0, 1], for pixels in [0, 1]; std at least 1e-6.
        widths: (outputs, inputs) of layers by name, where channels were removed; else empty.
        frozen: names of layers that keep their weights and statistics.

    Raises:
        BadData: a value of the wrong type or outside its range.
    """

    model: str
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("model", self.model, isinstance(self.model, str) and self.model != "", "a name")
        _check(
            "classes",
            self.classes,
            _is_size(self.classes, _MOST_CLASSES) and self.classes > 1,
            f"an integer in [2, {_MOST_CLASSES}]",
        )
        _check(
            "shape",
            self.shape,
            _is_tuple(self.shape, 3) and all(_is_size(x, _LARGEST_SIDE) for x in self.shape),
            f"three sizes (C, H, W) in [1, {_LARGEST_SIDE}]",
        )
        channels = self.shape[0]
        _check(
            "mean",
            self.mean,
            _is_tuple(self.mean, channels) and all(_is_within(x, 0, 1) for x in self.mean),
            f"{channels} numbers in [0, 1], one per channel, for pixels in [0, 1]",
        )
        _check(
            "std",
            self.std,
            _is_tuple(self.std, channels)
            and all(_is_within(x, _SMALLEST_STD, 1) for x in self.std),
            f"{channels} numbers in [{_SMALLEST_STD:g}, 1], one per channel, for pixels in [0, 1]",
        )
        _check(
            "widths",
            self.widths,
            isinstance(self.widths, Mapping) and all(map(_is_widths, self.widths.items())),
            f"pairs of sizes in [1, {_MOST_CHANNELS}] by the names of layers",
        )
        _check(
            "frozen",
            self.frozen,
            isinstance(self.frozen, tuple) and all(isinstance(x, str) for x in self.frozen),
            "names of layers",
        )

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold; tuples as lists; no widths or frozen where there are none."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        plain["widths"] = {name: list(pair) for name, pair in self.widths.items()}
        return {k: v for k, v in plain.items() if v or k not in _OPTIONAL}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """The inverse of `to_dict`.

        Raises:
            BadData: a field is missing, unknown, of the wrong type or outside its range.
        """
        if not isinstance(values, Mapping):
            raise BadData(f"architecture: must be an object, got {values!r}")
        known = {entry.name for entry in fields(cls)}
        missing, unknown = sorted(known - values.keys() - _OPTIONAL), sorted(values.keys() - known)
        if missing or unknown:
            raise BadData(f"architecture: fields missing {missing}, fields unknown {unknown}")
        plain: dict[str, Any] = {k: _as_tuple(v) for k, v in values.items()}
        if isinstance(plain.get("widths"), Mapping):
            plain["widths"] = {name: _as_tuple(pair) for name, pair in plain["widths"].items()}
        return cls(**plain)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _check(field: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise BadData(f"architecture: {field} must be {what}, got {value!r}")


def _is_tuple(value: object, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length


def _is_widths(item: tuple[object, object]) -> bool:
    name, pair = item
    if not isinstance(name, str) or not isinstance(pair, tuple) or len(pair) != 2:
        return False
    return all(_is_size(size, _MOST_CHANNELS) for size in pair)


def _is_size(value: object, largest: int) -> bool:
    # A bool is an int to Python, and not a size to anyone.
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _is_within(value: object, low: float, high: float) -> bool:
    # NaN fails both comparisons.
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
