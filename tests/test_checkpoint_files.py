"""A checkpoint is read only if it is, byte by byte, what was written; the one before stays."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import same

from pipeline.checkpoints import Checkpoints
from pipeline.store import checkpoints_in

HISTORY = [{"epoch": 1, "loss": 0.25}]


def tensors(step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "net/weight": torch.rand(40, 30, generator=draw),
        "optimiser/0/momentum_buffer": torch.rand(7, generator=draw),
        "method/frozen": torch.tensor(True),
        "meter/counts": torch.tensor([step, 1, 2]),
    }


def two(folder: Path, told: list[str]) -> Checkpoints:
    folder.mkdir(exist_ok=True)
    kept = Checkpoints(folder, told.append)
    for step in (3, 6, 9):
        kept.save(step, tensors(step), HISTORY * step)
    return kept


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    kept = two(tmp_path, [])
    assert [path.name[-3:] for path in checkpoints_in(tmp_path)] == ["006", "009"]
    saved = kept.latest()
    assert saved is not None
    step, found, history = saved
    assert (step, history) == (9, HISTORY * 9)
    assert same(found, tensors(9))


def test_of_a_folder_without_any_nothing_is_restored(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, pytest.fail).latest() is None


def assert_falls_back(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """The damaged one is told and gone, and what was before is read; after both, nothing is."""
    told: list[str] = []
    kept = two(folder, told)
    older, newer = checkpoints_in(folder)
    newer.write_bytes(damage(newer.read_bytes()))
    saved = kept.latest()
    assert saved is not None
    assert saved[0] == 6
    assert same(saved[1], tensors(6))
    assert checkpoints_in(folder) == [older]
    older.write_bytes(damage(older.read_bytes()))
    assert kept.latest() is None
    assert checkpoints_in(folder) == []
    assert told == [
        f"{path}: damaged or of another version; going on from what was before"
        for path in (newer, older)
    ]


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_noticed(
    count: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    draw = random.Random(count)

    def flip(data: bytes) -> bytes:
        place = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        return bytes(flipped)

    for _ in range(count // 2):  # two files each
        assert_falls_back(tmp_path, flip)
    record_property("trials", count)


def test_a_truncated_one_is_noticed(tmp_path: Path) -> None:
    two(tmp_path, [])
    size = checkpoints_in(tmp_path)[-1].stat().st_size
    for length in (0, 1, 24, 88, 89, *range(100, size, 512), size - 1):
        assert_falls_back(tmp_path, lambda data, n=length: data[: min(n, len(data) - 1)])
    assert_falls_back(tmp_path, lambda data: data + b"\0")


def test_a_piece_of_work_is_done_once(tmp_path: Path) -> None:
    kept, made = Checkpoints(tmp_path, pytest.fail), []

    def make() -> dict[str, Tensor]:
        made.append(1)
        return tensors(5)

    first = kept.kept("pgd@int8", make)
    assert same(first, tensors(5))
    # Another process, and another name.
    again = Checkpoints(tmp_path, pytest.fail)
    assert same(again.kept("pgd@int8", lambda: pytest.fail("made twice")), first)
    assert same(again.kept("pgd@fp32", lambda: tensors(6)), tensors(6))
    assert len(made) == 1
    assert again.latest() is None, "this is no checkpoint of training"


def test_a_piece_of_work_that_is_damaged_is_done_again(tmp_path: Path) -> None:
    told: list[str] = []
    kept = Checkpoints(tmp_path, told.append)
    kept.kept("pgd@int8", lambda: tensors(5))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert same(kept.kept("pgd@int8", lambda: tensors(7)), tensors(7))
    assert len(told) == 1
    assert same(kept.kept("pgd@int8", lambda: pytest.fail("made again")), tensors(7))
