"""`doctor` names what is missing or odd, and the way out; each on a pretended machine."""

import os
import sys
import webbrowser
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import advprune

from pipeline import cgroups
from pipeline.doctor import engines, machine, packages, storage, tools, torch_build
from pipeline.doctor.finding import Finding, guarded
from pipeline.files import lock

DEAD = 2**22 + 1  # above the largest process id that Linux gives


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only(found: Iterable[Finding]) -> Finding:
    (finding,) = found
    return finding


def told(found: Iterable[Finding], status: str, *words: str) -> None:
    """The one finding, which must name a remedy if it is not ok."""
    finding = only(found)
    assert finding.status == status, finding
    assert bool(finding.remedy) or status == "ok"
    text = f"{finding.found} {finding.remedy}"
    assert all(word in text for word in words), text


# The command ------------------------------------------------------------------------------------


def test_it_says_what_there_is_and_leaves_nothing(here: Path) -> None:
    shown = advprune("doctor")
    assert shown.code == 0
    found = {entry["name"]: entry for entry in advprune("doctor", "--json").json}
    for name in ("python", "torch", "onnx", "onnxruntime on", "openvino", "disk", "file system"):
        assert found[name]["status"] == "ok", found[name]
    assert set(packages.EXTRAS) <= found.keys()
    assert all(entry["remedy"] for entry in found.values() if entry["status"] != "ok")
    assert all(name in shown.out for name in found)
    assert list(here.iterdir()) == []


def test_only_what_is_needed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    really = packages.version

    def version(name: str) -> str:
        if name in ("onnx", "openvino"):
            raise PackageNotFoundError(name)
        return really(name)

    monkeypatch.setattr(packages, "version", version)
    missing = advprune("doctor", "--json")
    assert missing.code == 69
    assert [entry["name"] for entry in missing.json if entry["status"] == "missing"] == ["onnx"]
    (openvino,) = [entry for entry in missing.json if entry["name"] == "openvino"]
    assert openvino["status"] == "absent"
    assert "pip install 'openvino>=" in openvino["remedy"]


def test_a_look_that_fails_is_told_and_the_others_go_on() -> None:
    def look() -> Iterable[Finding]:
        yield Finding("first", "ok", "")
        raise ZeroDivisionError("odd\nmachine")

    first, second = guarded("second", look)
    assert (first.name, second.name, second.status) == ("first", "second", "warning")
    assert "ZeroDivisionError: odd machine" in second.found


# Packages and interpreter -----------------------------------------------------------------------


def test_versions_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.11", "numpy", 'timm>=1; extra == "timm"']
    monkeypatch.setattr(packages, "requires", lambda _: wanted)
    monkeypatch.setattr(packages, "version", lambda _: "0.9")
    torch_, numpy = packages.core()
    assert (torch_.status, numpy.status) == ("missing", "ok")
    assert "0.9, must be torch>=2.11" in torch_.found
    assert "make setup" in torch_.remedy
    (timm,) = [finding for finding in packages.extras() if finding.name == "timm"]
    assert (timm.status, timm.remedy) == ("absent", "pip install 'timm>=1'")
    assert "too old" in timm.found


def test_the_package_itself_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", requires)
    told(packages.core(), "missing", "not installed", "make setup")


def test_another_python_or_system(monkeypatch: pytest.MonkeyPatch) -> None:
    told(machine.python(), "ok")
    monkeypatch.setattr(machine.system, "python_version", lambda: "3.9.1")
    told(machine.python(), "missing", "3.9.1, must be", "PYTHON=python3.11")
    monkeypatch.setattr(machine.system, "system", lambda: "Darwin")
    told(machine.platform(), "warning", "only Linux is tested")


# torch and its GPU ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built", "driver", "status", "words"),
    [
        (None, "580.65.06", "warning", ("built for processors alone", "pip install")),
        ("13.2", "535.104.05", "warning", ("535.104.05 is too old", "nvidia-driver-580")),
        ("12.8", "470.1", "warning", ("too old", "nvidia-driver-525")),
        ("13.2", "580.65.06", "warning", ("finds no device", "CUDA_VISIBLE_DEVICES")),
        ("13.2", "", "warning", ("no driver is loaded",)),
        ("13.2", None, "absent", ("no device",)),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    built: str | None,
    driver: str | None,
    status: str,
    words: tuple[str, ...],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch_build, "_NVIDIA", here / "version")
    monkeypatch.setattr(torch_build, "_DEVICES", here)
    if driver is not None:
        (here / "nvidia0").touch()
    if driver:
        (here / "version").write_text(f"NVRM version: NVIDIA UNIX Kernel Module  {driver}  Jul 2\n")
    told(torch_build.cuda(), status, *words)


def test_a_processor_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    told(torch_build.bfloat16(), "ok")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    told(torch_build.bfloat16(), "absent", "float32")


def test_onnxruntime_beside_a_gpu_and_beside_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    told(engines.providers(), "absent", "cannot use", "onnxruntime-gpu")
    monkeypatch.setattr(engines, "version", lambda _: "1")
    told(engines.providers(), "warning", "both installed", "pip uninstall")
    told(engines.tensorrt(), "warning", "fails", "pip install --force-reinstall tensorrt")


# The machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [{"cpu.max": "50000 100000"}, {"cpu/cpu.cfs_quota_us": "50000"}])
def test_more_threads_than_a_container_gives(
    files: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "cpu").mkdir()
    (here / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for name, text in files.items():
        (here / name).write_text(f"{text}\n")
    monkeypatch.setattr(cgroups, "_MOUNT", here)
    monkeypatch.setattr(cgroups, "_OWN", here / "none")
    assert cgroups.cores() == 0.5
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    told(machine.cores(), "warning", "export OMP_NUM_THREADS=1")


def test_little_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_MOUNT", here)
    (here / "memory.max").write_text("1000000000\n")
    told(machine.memory(), "warning", "1.0 GB are the limit of the container", "--limit-train")
    (here / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_MEMINFO", here / "none")
    monkeypatch.setattr(cgroups, "_OWN", here / "none")
    told(machine.memory(), "warning", "does not say")


@pytest.mark.parametrize("text", ["", "max", "max 100000", "\udcff", "-1", "1 0", "nonsense x"])
def test_odd_control_groups_are_no_limits(
    text: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu.max", "memory.max", "own"):
        (here / name).write_bytes(os.fsencode(text))
    monkeypatch.setattr(cgroups, "_MOUNT", here)
    monkeypatch.setattr(cgroups, "_OWN", here / "own")
    if text != "1 0":
        assert cgroups.cores() is None
    assert cgroups.memory() is None


def test_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    told(machine.clock(), "ok")
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    told(machine.clock(), "warning", "1970", "timedatectl")


# The disk ---------------------------------------------------------------------------------------


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    full = advprune("doctor", "--runs", "not/there/yet", "--json")
    assert full.code == 69
    assert [entry["name"] for entry in full.json if entry["status"] == "missing"] == ["disk"]
    few = SimpleNamespace(f_files=100, f_favail=3)
    monkeypatch.setattr(storage.os, "statvfs", lambda _: few)
    assert "only 3 more files" in list(storage.disk(Path("runs")))[1].found


@pytest.mark.parametrize("what", ["_locks", "_renames", "_syncs", "_links"])
def test_a_file_system_that_lacks_something(
    what: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    where, name = {
        "_locks": (storage.fcntl, "flock"),
        "_renames": (Path, "replace"),
        "_syncs": (storage.os, "fsync"),
        "_links": (Path, "symlink_to"),
    }[what]
    monkeypatch.setattr(where, name, refuse)
    told(storage.file_system(here), "missing", "Operation not supported", "--runs DIR")
    monkeypatch.undo()
    assert list(here.iterdir()) == []


def test_locks_that_everybody_gets(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.fcntl, "flock", lambda *_: None)
    told(storage.file_system(here), "missing", "two got the same one")


def test_a_latest_run_that_is_gone(here: Path) -> None:
    told(storage.latest(here), "absent", "advprune run")
    (here / "latest").symlink_to("gone")
    told(storage.latest(here), "warning", "points at gone", "rm ")
    (here / "gone").mkdir()
    told(storage.latest(here), "ok")


def test_what_dead_runs_left(here: Path) -> None:
    store = here / "store"
    store.mkdir()
    told(storage.leftovers(here), "ok")
    for name in (f".latest.{DEAD}", f".mine.{os.getpid()}", ".hidden"):
        (here / name).write_text("")
    (here / ".old.lock").write_text(f"process {DEAD} on {os.uname().nodename}")
    (here / ".far.lock").write_text(f"process {DEAD} on elsewhere")
    (store / ".tmp-prune-1").mkdir()
    (store / ".tmp-prune-2").mkdir()
    with lock(store / ".lock-prune-2", "prune"):
        unfinished, stale = storage.leftovers(here)
    assert unfinished.found.startswith("1 unfinished stages")
    assert stale.found.startswith("2 files")
    assert stale.remedy == f"rm {here}/.latest.{DEAD} {here}/.old.lock"


# Around it --------------------------------------------------------------------------------------


def test_bytecode_and_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    told(tools.bytecode(), "warning", "unset PYTHONDONTWRITEBYTECODE")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    told(tools.bytecode(), "ok")

    def no_browser() -> None:
        raise webbrowser.Error

    monkeypatch.setattr(tools.shutil, "which", lambda _: None)
    monkeypatch.setattr(tools.webbrowser, "get", no_browser)
    assert [(f.name, f.status) for f in tools.programs()] == [
        ("C compiler", "absent"),
        ("make", "absent"),
        ("browser", "absent"),
    ]
    assert all(finding.remedy for finding in tools.programs())
