"""What the container allows: limits of control groups, of version 2 and 1, where they are told."""

from collections.abc import Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # how version 1 says that there is no limit


def cores() -> float | None:
    """Cores that this process may use in the long run; None where there is no limit."""
    limits = []
    for text in _read("cpu", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            limits.append(int(quota) / int(period))
    # Version 1 says -1 where there is none.
    quotas, periods = _read("cpu", "cpu.cfs_quota_us"), _read("cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory() -> int | None:
    """Bytes that this process may have; None where there is no limit."""
    texts = [*_read("memory", "memory.max"), *_read("memory", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _UNLIMITED]
    return min(limits, default=None)


def _read(controller: str, file: str) -> Iterator[str]:
    """What stands in a file of our own group and of all above it, as far as it can be read."""
    for folder in _groups(controller):
        try:
            yield (folder / file).read_text().strip()
        except (OSError, ValueError):
            continue


def _groups(controller: str) -> Iterator[Path]:
    """Our group in each version, then its parents; a container often sees its own as the root."""
    try:
        lines = _OWN.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" or controller in names.split(","):
            root = _MOUNT if number == "0" else _MOUNT / controller
            group = root / path.lstrip("/")
            yield from (place for place in (group, *group.parents) if place.is_relative_to(root))
    yield from (_MOUNT, _MOUNT / controller)
