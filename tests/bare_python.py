"""A Python as a device has it: numpy and onnxruntime, and nothing else that is installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_FIND = "import numpy, onnxruntime; print(numpy.__path__[0], onnxruntime.__path__[0], sep='\\n')"


def make_bare_python(folder: Path) -> Path:
    """An interpreter in a new environment with links to the two packages.

    It is the oldest Python on the path from 3.8 on that has them, else the one that runs the tests.
    """
    for name in ("python3.8", "python3.9", "python3.10", sys.executable):
        found = _packages(name)
        if found:
            break
    else:
        raise AssertionError(f"{sys.executable} itself has no numpy and onnxruntime")
    subprocess.run([name, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    for package in found:
        # Wheels keep their shared libraries beside the package.
        for path in (package, package.with_name(f"{package.name}.libs")):
            if path.exists():
                (site / path.name).symlink_to(path)
    return folder / "bin" / "python"


def without_override(command: list[str]) -> list[str]:
    """A command that meets permissions as others do, also where root runs the tests."""
    drop = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)"  # CAP_DAC_OVERRIDE
    return [sys.executable, "-c", f"{drop}; os.execv(sys.argv[1], sys.argv[1:])", *command]


def run_bare(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with the path of programs as its only environment."""
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def _packages(name: str) -> list[Path]:
    if shutil.which(name) is None:
        return []
    result = subprocess.run([name, "-c", _FIND], capture_output=True, text=True, check=False)
    return [] if result.returncode else [Path(line) for line in result.stdout.split("\n")[:2]]
