"""Data sets are found by name, and finding them costs nothing that is not needed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from advprune import data
from advprune.errors import Refused


def test_names_have_one_line_each() -> None:
    listed = data.names()
    names = [name for name, _ in listed]
    assert set(names) == {
        "digits",
        "folder:PATH",
        "cifar10",
        "cifar100",
        "svhn",
        "mnist",
        "fashion_mnist",
        "imagenet",
    }
    assert len(set(names)) == len(names)
    assert all(about and "\n" not in about and len(about) < 100 for _, about in listed)


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("cifar", "cifar10 or cifar100"),
        ("digit", "digits"),
        ("folder", "folder:PATH"),
        ("digits:", "digits"),
        ("minst", "mnist"),
        ("", ""),
        ("qqqq", ""),
    ],
)
def test_unknown_name(spec: str, near: str) -> None:
    for call in (
        lambda: data.load(spec, data_dir=Path("nowhere")),
        lambda: data.fingerprint(spec, Path("nowhere"), None),
    ):
        with pytest.raises(Refused) as refusal:
            call()
        message = str(refusal.value)
        assert refusal.value.exit_code == 2
        assert repr(spec) in message
        assert "advprune data" in message
        assert ("did you mean" in message) == bool(near)
        assert near in message


def test_the_same_load_gives_the_same_digest() -> None:
    def load(**options: Any) -> str:
        return data.load("digits", data_dir=Path("nowhere"), **options).digest

    assert load() == load()
    found = [load(), load(split_seed=1), load(limit_train=500), load(limit_test=100)]
    assert len(set(found)) == len(found)


def test_the_digits_never_change() -> None:
    # Baselines are compared only on equal data: these bytes are part of the interface.
    digits = data.load("digits", data_dir=Path("nowhere"))
    assert digits.digest == "181c2c304bbf7d7cfa776a6d61accc6f6896ff1c448a0c4b0f5dc34e05112573"


def test_torchvision_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, pathlib; from advprune import data; data.names();"
        "data.load('digits', data_dir=pathlib.Path('nowhere'));"
        "data.fingerprint('cifar10', pathlib.Path('nowhere'), None);"
        "sys.exit('torchvision' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
