"""Gets the published TensorRT bindings without TensorRT: a wheel, and libraries that do nothing.

The bindings are one extension module that needs nine functions of three libraries. Stubs of these
that return null are enough to import it and to read what it offers. The wheel must not be passed
on, so it is fetched into a folder that goes away, and so does what is read of it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_STUBS = {
    "nvinfer": """
        void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
        void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
        void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
        void *getBuilderPluginRegistry(int capability) { return 0; }
        void *getPluginRegistry(void) { return 0; }
    """,
    "nvinfer_plugin": """
        _Bool initLibNvInferPlugins(void *logger, const char *space) { return 0; }
    """,
    "nvonnxparser": """
        void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
        void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version)
        { return 0; }
        int getNvOnnxParserVersion(void) { return 0; }
    """,
}


def read_bindings(requirements: Path, folder: Path) -> dict[str, Any]:
    """The surface of the bindings that a requirements file names, see `read.py`.

    Args:
        requirements: pins one wheel of bindings, with hashes.
        folder: empty, for the wheel and the stubs.
    """
    match = re.search(r"-bindings==(\d+)\.", requirements.read_text())
    assert match, requirements
    wheel, stubs = folder / "wheel", folder / "stubs"
    _install(requirements, wheel)
    _compile(stubs, match[1])
    paths = {"PYTHONPATH": str(wheel), "LD_LIBRARY_PATH": str(stubs)}
    result = _run([sys.executable, str(Path(__file__).with_name("read.py"))], paths)
    if result.returncode:
        pytest.fail(f"{requirements.name}: the bindings cannot be read:\n{result.stderr}")
    (folder / "surface.json").write_text(result.stdout)
    return json.loads(result.stdout)


def _install(requirements: Path, folder: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.fail("uv is missing; type: make setup")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target"]
    command += [str(folder), "--no-deps", "--require-hashes", "-r", str(requirements)]
    result = _run(command, {})
    if result.returncode:
        pytest.fail(
            f"{requirements.name}: the wheel cannot be fetched for Python "
            f"{sys.version_info.major}.{sys.version_info.minor}; this test needs the package "
            f"index:\n{result.stderr}"
        )


def _compile(folder: Path, major: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("cc is missing; install a C compiler")
    folder.mkdir()
    for name, source in _STUBS.items():
        library = f"lib{name}.so.{major}"
        (folder / f"{name}.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}"]
        command += ["-o", str(folder / library), str(folder / f"{name}.c")]
        result = _run(command, {})
        if result.returncode:
            pytest.fail(f"{library}: the stub does not compile:\n{result.stderr}")


def _run(command: list[str], paths: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | paths
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
