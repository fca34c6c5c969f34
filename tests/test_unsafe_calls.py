"""Promise: nothing here runs code from data, and no switch in the environment makes it."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from unsafe_calls import unsafe_calls

from advprune import models
from advprune.errors import BadData
from advprune.models import Architecture
from advprune.models.state_dict import load_state_dict

ROOT = Path(__file__).parents[1]
FOLDERS = ("advprune", "export", "deploy", "pipeline", "benchmarks", ".ci", ".github")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Tests that let a pickle run on purpose, once each, to see that it is an attack.
TESTS = (
    "tests/test_state_dict.py",
    "tests/test_state_dict_edges.py",
    "tests/test_unsafe_calls.py",
)
SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
OTHER = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

# Each of these is one unsafe line, after its imports.
CAUGHT = [
    "import torch; torch.load(f)",
    "import torch; torch.load(f, weights_only=False)",
    "import torch; torch.load(f, weights_only=1)",
    "import torch; torch.load(f, weights_only=safe)",
    "import torch; torch.load(f, None, weights_only=True, pickle_module=p)",
    "import torch; torch.load(f, 'cpu', p, weights_only=True)",
    "import torch; torch.load(f, weights_only=True, **more)",
    "import torch; torch.load(f, **{'weights_only': True})",
    "import torch as t; t.load(f)",
    "from torch import load; load(f)",
    "from torch import load as read; read(f)",
    "import torch.serialization; torch.serialization.load(f)",
    "from torch import serialization; serialization.load(f)",
    "import torch; read = torch.load",
    "import torch; list(map(torch.load, files))",
    "import torch; torch.serialization.add_safe_globals([eval])",
    "from torch.serialization import safe_globals",
    "import torch; torch.ops.load_library(f)",
    "import numpy as np; np.load(f, allow_pickle=True)",
    "import numpy as np; np.load(f, allow_pickle=trusted)",
    "import numpy as np; np.load(f, None, True)",
    "import numpy as np; np.load(f, **more)",
    "from numpy import load; load(f, allow_pickle=True)",
    "import numpy as np; np.lib.format.read_array(f, allow_pickle=True)",
    "import pandas; pandas.read_pickle(f)",
    "options.register_custom_ops_library(f)",
    "import onnxruntime as ort; ort.SessionOptions().register_custom_ops_library(f)",
    "register = options.register_custom_ops_library",
    "import tarfile; tarfile.open(f).extractall(folder)",
    "import tarfile; tarfile.open(f).extractall(folder, filter='fully_trusted')",
    "import tarfile; tarfile.open(f).extract(name)",
    "import zipfile; zipfile.ZipFile(f).extractall(folder)",
    "import shutil; shutil.unpack_archive(f)",
    "from shutil import unpack_archive",
    "build(name, trust_remote_code=True)",
    "build(name, trust_remote_code=trusted)",
    "import subprocess; subprocess.run(words, shell=True)",
    "import subprocess; subprocess.run(words, shell=bool(words))",
    "import yaml; yaml.load(f, yaml.SafeLoader)",
    "import yaml; yaml.unsafe_load(f)",
    "from yaml import full_load",
    "import importlib; importlib.import_module('pickle')",
    "__import__('dill')",
    "import os; os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'",
    "import os; os.environ.setdefault('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')",
]
LET_BY = [
    "import torch; torch.load(f, weights_only=True)",
    "import torch; torch.load(f, 'cpu', weights_only=True)",
    "import safetensors.torch; safetensors.torch.load(data)",
    "import json; json.load(f)",
    "import numpy as np; np.load(f); np.load(f, allow_pickle=False)",
    "import numpy as np; np.load(f, None, allow_pickle=False)",
    "import tarfile; tarfile.open(f).extractall(folder, filter='data')",
    "import tarfile; tarfile.open(f).extractfile(name)",
    "import subprocess; subprocess.run(words, shell=False)",
    "import yaml; yaml.safe_load(f)",
    "import importlib; importlib.import_module('numpy')",
    "import os; os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)",
]
# What ruff is there for; each line, with its imports, breaks the rule.
RUFF = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import dill": "TID251",
    "import shelve": "TID251",
    "import marshal": "TID251",
    "import joblib": "TID251",
    "import cloudpickle": "TID251",
    "import torch.hub": "TID251",
    "from torch import hub": "TID251",
    "import torch; torch.hub.load(a, b)": "TID251",
    "import torch; torch.jit.load(f)": "TID251",
    "import torch; torch.package.PackageImporter(f)": "TID251",
    "eval(text)": "S307",
    "exec(text)": "S102",
    "import os; os.system(text)": "S605",
    "import subprocess; subprocess.run(text, shell=True)": "S602",
    "import yaml; yaml.load(f)": "S506",
    "import tarfile; tarfile.open(f).extractall()": "S202",
    "import jinja2; jinja2.Environment()": "S701",
}


def test_no_source_runs_code_from_data() -> None:
    assert len(SOURCES) > 200
    found = {path: unsafe_calls(path.read_text("utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_tests_read_pickles_no_further_than_they_must() -> None:
    loading = [p for p in (ROOT / "tests").rglob("*.py") if "torch.load" in p.read_text("utf-8")]
    unrestricted = [
        path.relative_to(ROOT).as_posix()
        for path in loading
        for line in unsafe_calls(path.read_text("utf-8"))
        if "torch.load" in line
    ]
    assert sorted(unrestricted) == sorted(TESTS)


@pytest.mark.parametrize("line", CAUGHT)
def test_what_is_unsafe_is_found(line: str) -> None:
    assert unsafe_calls(line), "not found"
    nested = "def f():\n    class A:\n        " + "\n        ".join(line.split("; "))
    assert unsafe_calls(nested), "not found where it is nested"


@pytest.mark.parametrize("line", LET_BY)
def test_what_is_safe_is_let_by(line: str) -> None:
    assert unsafe_calls(line) == []


@pytest.mark.parametrize("package", ["advprune", "export", "deploy", "pipeline"])
def test_ruff_refuses_the_rest(package: str) -> None:
    words = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--no-cache"]
    text = "".join(f"{line}\n" for line in RUFF)
    words += ["--stdin-filename", f"{package}/some_module.py", "-"]
    done = subprocess.run(words, input=text, cwd=ROOT, capture_output=True, text=True, check=False)
    said = Counter(
        (int(line.split(":")[1]), rule)
        for line in done.stdout.splitlines()
        for rule in {*RUFF.values()}
        if f": {rule} " in line
    )
    missed = {n: item for n, item in enumerate(RUFF.items(), 1) if not said[n, item[1]]}
    assert not missed


# That it holds when it runs ----------------------------------------------------------------------


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return Architecture("resnet20", 10, (3, 32, 32), (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def evil(tmp_path: Path, architecture: Architecture) -> Path:
    """A checkpoint with all weights of a network, and a program besides."""
    state = models.build(architecture).state_dict()
    torch.save({"state_dict": state, "extra": Runs(tmp_path / "victim")}, tmp_path / "evil.pt")
    return tmp_path / "evil.pt"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "victim"


def test_the_switch_would_make_it_run(
    evil: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests below would notice nothing."""
    monkeypatch.setenv(SWITCH, "1")
    with pytest.warns(UserWarning, match=SWITCH):
        torch.load(evil)
    assert victim.exists()


@pytest.mark.filterwarnings("default")  # else a warning would stop what must stop by itself
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({SWITCH}, "names posix.mkdir, and reading that could run code"),
        ({OTHER}, "names posix.mkdir, and reading that could run code"),
        ({SWITCH, OTHER}, "should be set, but both were set"),
    ],
    ids=["off", "on", "both"],
)
def test_whoever_uses_the_library_is_safe_from_the_switch(
    evil: Path,
    victim: Path,
    architecture: Architecture,
    variables: set[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in variables:
        monkeypatch.setenv(name, "1")
    with pytest.raises(BadData, match=said):
        load_state_dict(models.build(architecture), evil)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("start", "variables"),
    [("pipeline", {SWITCH}), ("advprune", {SWITCH, OTHER})],
    ids=["module", "script"],
)
def test_whoever_types_the_command_is_safe_from_the_switch(
    evil: Path, victim: Path, start: str, variables: set[str]
) -> None:
    begin = {
        "pipeline": ["-m", "pipeline"],
        "advprune": ["-c", "from pipeline.cli import main; main()"],  # as the installed script does
    }[start]
    words = ["attack", str(evil), "--arch", "resnet20", "--data", "digits"]
    environment = {**os.environ, **dict.fromkeys(variables, "1")}
    done = subprocess.run(
        [sys.executable, *begin, *words],
        env=environment,
        cwd=evil.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 65, done.stderr
    assert "names posix.mkdir, and reading that could run code" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not victim.exists()
