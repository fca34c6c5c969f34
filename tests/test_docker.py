"""The Dockerfiles keep the rules that no daemon is needed to check, and what they copy suffices."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/docker"
FILES = sorted(path for path in FOLDER.glob("Dockerfile.*") if path.suffix != ".dockerignore")
IGNORED = FOLDER / "Dockerfile.cpu.dockerignore"
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def steps(path: Path) -> list[tuple[str, str]]:
    """(instruction, the rest of it), lines joined and comments off."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in parts]


def copied(path: Path) -> list[str]:
    """What comes from the checkout, of all COPY instructions."""
    found = []
    for word, rest in steps(path):
        if word == "COPY" and not rest.startswith("--from="):
            found += rest.split()[:-1]
    return found


def ignored(name: str, patterns: list[str]) -> bool:
    """As Docker reads them: the last pattern that fits, or fits a folder above, decides."""
    answer = False
    for pattern in patterns:
        bare = pattern.removeprefix("!").removeprefix("**/")
        parts = Path(name).parts
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(fnmatch.fnmatch(part, bare) for part in (*above, *parts)):
            answer = not pattern.startswith("!")
    return answer


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@every_file
def test_bases_are_named_by_a_whole_version(path: Path) -> None:
    bases = [rest.split()[0] for word, rest in steps(path) if word == "FROM"]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-[a-z]+", base)
    assert "latest" not in path.read_text()


@every_file
def test_nobody_is_root_in_the_end(path: Path) -> None:
    last = steps(path)[-[w for w, _ in reversed(steps(path))].index("FROM") - 1 :]
    assert [rest for word, rest in last if word == "USER"] == ["1000"]
    words = [word for word, _ in last]
    assert "RUN" not in words[words.index("USER") :]
    assert ("ENTRYPOINT", '["advprune"]') in last
    assert ("VOLUME", "/work/runs") in last


@every_file
def test_nothing_is_fetched_but_what_is_locked(path: Path) -> None:
    text = " && ".join(rest for word, rest in steps(path) if word == "RUN")
    assert not [word for word, _ in steps(path) if word == "ADD"]
    assert not re.search(r"\b(curl|wget|git|https?:)", text)
    installs = re.findall(r"pip install ([^&]*)", text)
    assert len(installs) == 2
    for options in installs:
        assert "--no-deps" in options
        assert "--require-hashes" in options or options.split()[-1] == "."
    assert "PIP_NO_CACHE_DIR=1" in path.read_text()
    if "apt-get" in text:
        assert "--no-install-recommends" in text
        assert "rm -rf /var/lib/apt/lists" in text
    assert "PYTHONDONTWRITEBYTECODE" not in path.read_text()


@every_file
def test_what_is_copied_is_there_and_the_build_may_see_it(path: Path) -> None:
    patterns = [
        line for line in IGNORED.read_text().splitlines() if line and not line.startswith("#")
    ]
    for name in copied(path):
        assert (ROOT / name).exists(), name
        assert not ignored(name, patterns), name
    for name in ("runs", ".venv", ".git", "tests", "deploy/__pycache__", "key.pem"):
        assert ignored(name, patterns), name
    beside = path.with_name(f"{path.name}.dockerignore")
    assert beside.read_bytes() == IGNORED.read_bytes()


def test_both_install_the_same() -> None:
    assert copied(FILES[0]) == copied(FILES[1])


def test_what_is_copied_is_all_that_the_program_needs(tmp_path: Path) -> None:
    source, built, place = (tmp_path / name for name in ("source", "built", "place"))
    source.mkdir()
    for name in copied(FILES[0]):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    step = next(rest for word, rest in steps(FILES[0]) if word == "RUN" and rest.endswith(" ."))
    _, _, options = step.partition(" install ")
    # The same step, but into a file: the environment of the tests stays as it is.
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", *shlex.split(options), "-w", built]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run(build, cwd=source, env=environment, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place)
    for data in ("advprune/data/digits.npz", "pipeline/presets/digits.toml"):
        assert (place / data).is_file()
    assert list((place / "deploy").glob("*.j2"))
    asked = "from pipeline.cli import main; main(['methods', 'hydra', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"title": "HYDRA"' in done.stdout
