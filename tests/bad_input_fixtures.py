"""Where a command begins that must be refused. Named as a plugin by the tests of bad input."""

import os
from pathlib import Path

import pytest
import torch
from tiny_run import advprune


@pytest.fixture(scope="session")
def warm() -> None:
    """What commands import is there, so that seconds are those of the commands."""
    import torchvision  # noqa: F401

    for words in ("run", "attack none", "bench none", "export none --target ort", "gate none"):
        advprune(*words.split(), *(["--sparsity", "2"] if words == "run" else []))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: None) -> Path:
    """The command begins in an empty folder, without settings of the user, on no GPU.

    It must end before any network learns.
    """
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in os.environ:
        if name.startswith("ADVPRUNE_") or name == "CI":
            monkeypatch.delenv(name)
    # Two threads, as the default preset has, wait for each other by spinning where tests run beside
    # each other, which makes twenty seconds of one.
    monkeypatch.setenv("ADVPRUNE_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def work(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("advprune.train.batches", work)
    return folder
