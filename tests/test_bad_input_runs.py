"""Bad runs, baselines and targets: what is given to the commands that read a finished run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import Bad, refused, tree
from tiny_run import Tiny

from deploy.sealed import seal, unseal

pytest_plugins = ["bad_input_fixtures", "tiny_fixtures"]

# Commands that take a finished run, each with what else it needs.
READERS = [
    "verify",
    "bench",
    "export --target ort",
    "gate --policy floor --floor 0.1",
    "report",
    "bundle make",
]


def words_of(reader: str, run: object) -> list[str]:
    command, *options = reader.split()
    if command == "bundle":
        return ["bundle", "make", str(run)]
    return [command, str(run), *options]


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def links_to_nothing(path: Path) -> None:
    path.mkdir()
    (path / "00_data").symlink_to("../store/data-0123")


NO_RUNS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "gone": (lambda _: None, 66, "not a finished run"),
    "an empty folder": (a_folder, 66, "not a finished run"),
    "a loop": (a_loop, 66, "not a finished run"),
    "a dangling link": (a_dangling_link, 66, "not a finished run"),
    "links to nothing": (links_to_nothing, 65, "not a manifest"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_RUNS)
def test_a_folder_that_is_no_run(kind: str, reader: str, empty_folder: Path) -> None:
    make, code, says = NO_RUNS[kind]
    make(empty_folder / "run")
    refused(*words_of(reader, "run"), code=code, says=("run", says))


@pytest.mark.parametrize("reader", READERS)
def test_a_run_whose_name_is_none(reader: str, empty_folder: Path) -> None:
    refused(*words_of(reader, ""), code=66, says=("not a finished run",))
    refused(*words_of(reader, "a\x00b"), code=2, says=("null byte",))
    refused(*words_of(reader, "x" * 5000), code=2, says=("File name too long",))
    (empty_folder / "file").write_text("x")
    code = 65 if reader.startswith("gate") else 66  # to the gate a file is one of verdicts
    refused(*words_of(reader, "file"), code=code, says=("file",))


@pytest.fixture
def broken(tiny: Tiny, tmp_path: Path) -> Callable[[str, str, Callable[[Path], object]], Path]:
    """A copy of the run in which one file of one stage is spoiled."""

    def spoil(stage: str, name: str, how: Callable[[Path], object]) -> Path:
        run, own = tmp_path / "run", tmp_path / stage
        run.mkdir()
        shutil.copy(tiny.run / "recipe.toml", run)
        for entry in tiny.run.glob("[0-9]*_*"):
            mine = entry.name.endswith(f"_{stage}")
            (run / entry.name).symlink_to(own if mine else entry.resolve())
        shutil.copytree(tiny.artefact(stage), own)
        how(own / name)
        return run

    return spoil


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def climb(path: Path) -> None:
    manifest = unseal(path.read_bytes())
    manifest["files"]["../../secret"] = {"sha256": "0" * 64, "bytes": 1}
    path.write_bytes(seal(manifest))


BROKEN = [
    ("report", "report.json", cut, "report", "changed since it was made"),
    ("report", "report.json", Path.unlink, "report", "missing or changed"),
    ("report", "manifest.json", cut, "report", "not a manifest"),
    ("report", "manifest.json", lambda path: path.write_text("[]"), "report", "not a manifest"),
    ("report", "manifest.json", lambda path: path.write_bytes(b"\xff"), "report", "not a manifest"),
    ("report", "manifest.json", climb, "report", "unexpected file '../../secret'"),
    ("verify", "verdicts.int8.json", flip, "gate --policy floor --floor 0.1", "missing or changed"),
    ("verify", "manifest.json", cut, "gate --policy floor --floor 0.1", "not a manifest"),
    ("export", "model.int8.onnx", flip, "export --target ort --out out", "missing or changed"),
    ("data", "data.safetensors", flip, "bench", "missing or changed"),
    ("data", "data.safetensors", flip, "verify", "missing or changed"),
    ("report", "report.json", flip, "bundle make --out out", "missing or changed"),
]


@pytest.mark.parametrize(("stage", "name", "how", "reader", "says"), BROKEN)
def test_a_run_with_a_broken_file(
    stage: str,
    name: str,
    how: Callable[[Path], object],
    reader: str,
    says: str,
    broken: Callable[[str, str, Callable[[Path], object]], Path],
    empty_folder: Path,
) -> None:
    run = broken(stage, name, how)
    refused(*words_of(reader.replace(" make", ""), run), code=65, says=(says,))
    assert not (empty_folder / "out").exists()


# Options of commands that read a run: RUN stands for it.
OPTIONS = [
    Bad("bench RUN --runtime nope", 2, ("runtime 'nope'", "ort-cuda")),
    Bad("bench RUN --runtime ort-cuda", 69, ("asked for CUDAExecutionProvider",)),
    Bad("bench RUN --runtime ort-tensorrt", 69, ("asked for TensorrtExecutionProvider",)),
    Bad("bench RUN --runtime tensorrt", 66, ("has no model.plan",)),
    Bad("bench RUN --threads 0", 2, ("--threads",)),
    Bad("bench RUN --single-stream -1", 2, ("--single-stream",)),
    Bad("bench RUN --single-stream inf", 2, ("--single-stream inf",)),
    Bad("bench RUN --out .", 73, ("is a folder",)),
    Bad("bench RUN --out none/x.json", 73, ("no such folder",)),
    Bad("verify RUN --suite slow", 2, ("suite 'slow' is not known",)),
    Bad("export RUN --target tensorrt --out out", 69, ("NVIDIA GPU",)),
    Bad("export RUN --target triton --max-batch 4 --optimal-batch 8", 2, ("--optimal-batch 8",)),
    Bad("export RUN --target nope", 2, ("--target 'nope'",)),
    Bad("export RUN --target ort --precision fp16 --out out", 66, ("run again with --fp16",)),
    Bad("export RUN --target ort --out .", 73, ("exists already",)),
    Bad("gate RUN --baseline none.json", 12, ("none.json: no such file",)),
    Bad("gate RUN --baseline .", 12, ("no such file",)),
    Bad("gate RUN --policy floor", 2, ("needs its value",)),
    Bad("gate RUN --policy nope", 2, ("policy 'nope'",)),
    Bad("gate RUN --margin 2", 2, ("did you mean 0.02?",)),
    Bad("gate RUN --floor nan", 2, ("floor must lie in (0, 1)",)),
    Bad("gate RUN --floor 0.1 --out none/x/y --junit none/x.xml", 73, ("none/x.xml",)),
    Bad("gate RUN --float none.json", 2, ("--float belongs to a verdict file",)),
    Bad("gate RUN --reason because", 2, ("belong to --update-baseline",)),
    Bad("gate RUN --update-baseline", 2, ("add --baseline FILE",)),
    Bad("gate RUN --update-baseline --baseline b.json", 2, ("needs a reason",)),
    Bad("bundle RUN --out .", 73, ("exists already",)),
    Bad("bundle RUN --release -1", 2, ("--release",)),
    Bad("bundle RUN --sign none.pem --out out", 66, ("none.pem: cannot be read",)),
]


@pytest.mark.parametrize("bad", OPTIONS, ids=str)
def test_a_bad_option_of_a_command_on_a_run(bad: Bad, tiny: Tiny, empty_folder: Path) -> None:
    before = tree(tiny.runs)
    words = [str(tiny.run) if word == "RUN" else word for word in bad.words.split()]
    refused(*words, code=bad.code, says=bad.says)
    assert tree(tiny.runs) == before


def test_no_gpu_is_never_a_cpu_in_silence(empty_folder: Path) -> None:
    for words in (("run",), ("plan",), ("attack", "net:of_mine")):
        refused(*words, "--device", "cuda", code=69, says=("--device cuda", "--device cpu"))
        refused(*words, "--device", "cuda:7", code=69, says=("0 CUDA devices",))


def test_the_installed_command_refuses_alike(tiny: Tiny, empty_folder: Path) -> None:
    """In a process of its own, with bytes in its words that are no text."""
    command = Path(sys.executable).with_name("advprune")
    for words, code in (
        ([b"run", b"--data", b"folder:\xff"], 66),
        ([b"report", b"\xff"], 66),
    ):
        done = subprocess.run([os.fsencode(command), *words], capture_output=True, check=False)
        assert done.returncode == code
        assert done.stderr.startswith(b"advprune: ")
        assert done.stderr.count(b"\n") == 1
    assert list(empty_folder.iterdir()) == []
