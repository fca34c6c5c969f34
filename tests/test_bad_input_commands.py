"""Every command is refused in one line, and with --json in one document, whatever the exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import Bad, refused, tree
from tiny_run import advprune

pytest_plugins = ["bad_input_fixtures"]
pytestmark = pytest.mark.usefixtures("empty_folder")

# At least two for each command; options of commands on a run are in test_bad_input_runs.py.
COMMANDS = [
    Bad("nope", 2, ("No such command 'nope'",)),
    Bad("run extra", 2, ("unexpected extra argument",)),
    Bad("run --method", 2, ("requires an argument",)),
    Bad("run -mharb", 2, ("--method 'harb'", "did you mean harp")),
    Bad("run --runs /proc/nope", 73, ("/proc/nope: cannot be created",)),
    Bad("run --checkpoint", 2, ("No such option: --checkpoint",)),
    Bad("plan extra", 2, ("unexpected extra argument",)),
    Bad("plan --profile", 2, ("No such option: --profile",)),
    Bad("plan --recipe none.toml", 66, ("no such file",)),
    Bad("verify", 66, ("runs/latest",)),
    Bad("verify a b", 2, ("unexpected extra argument",)),
    Bad("verify --suite", 2, ("requires an argument",)),
    Bad("attack", 2, ("Missing argument",)),
    Bad("attack digits_resnet", 2, ("is not a model",)),
    Bad("attack net:none", 66, ("cannot import 'net'",)),
    Bad("attack net:of --eps 8", 2, ("did you mean 8/255?",)),
    Bad("attack net:of --eps nan", 2, ("--eps 'nan'",)),
    Bad("attack net:of --norm l3", 2, ("--norm 'l3'",)),
    Bad("attack net:of --seed -1", 2, ("--seed -1",)),
    Bad("attack net:of --trials 0", 2, ("--trials 0",)),
    Bad("attack net:of --method harb", 2, ("did you mean harp",)),
    Bad("attack net:of --protocol rb", 2, ("use ours or apb",)),
    Bad("attack net:of --attack sqare", 2, ("did you mean 'square'",)),
    Bad("attack net:of --attack pgd:steps=x", 2, ("must be an integer",)),
    Bad("attack net:of --attack pgd:step=3", 2, ("did you mean 'steps'",)),
    Bad("attack net:of --attack torchattacks:PGX", 2, ("torchattacks:PGX is not known",)),
    Bad("attack net:of --out .", 73, ("is a folder",)),
    Bad("attack net:of --out none/x.json", 73, ("no such folder",)),
    Bad("attack net:of --set verify.images=0", 2, ("verify.images 0",)),
    Bad("attack net:of --set nonsense=1", 2, ("setting 'nonsense'",)),
    Bad("bench", 66, ("runs/latest",)),
    Bad("bench --threads x", 2, ("valid integer",)),
    Bad("bench --single-stream nan", 2, ("--single-stream",)),
    Bad("export", 2, ("Missing option '--target'",)),
    Bad("export --target ort", 66, ("runs/latest",)),
    Bad("export --target ort --max-batch 4", 2, ("is for --target tensorrt or triton",)),
    Bad("export --target ort --max-batch 99999999999", 2, ("2147483647",)),
    Bad("export --target ort --precision int4", 2, ("--precision 'int4'",)),
    Bad("gate", 66, ("runs/latest",)),
    Bad("gate --policy nope", 2, ("policy 'nope'",)),
    Bad("gate --hard speed", 2, ("hard 'speed'",)),
    Bad("report", 66, ("runs/latest",)),
    Bad("report a b", 2, ("unexpected extra argument",)),
    Bad("bundle", 66, ("runs/latest",)),
    Bad("bundle verify", 2, ("Missing argument",)),
    Bad("bundle verify none", 66, ("give the folder of a bundle",)),
    Bad("bundle unpack none out", 66, ("give an archive",)),
    Bad("bundle unpack none", 2, ("Missing argument",)),
    Bad("board", 66, ("runs: no such folder",)),
    Bad("board none", 66, ("none: no such folder",)),
    Bad("board --out", 2, ("requires an argument",)),
    Bad("compare", 2, ("Missing argument",)),
    Bad("compare none none", 66, ("none: not a finished run",)),
    Bad("doctor extra", 2, ("unexpected extra argument",)),
    Bad("doctor --nope", 2, ("No such option",)),
    Bad("methods harb", 2, ("did you mean harp",)),
    Bad("methods ../harp", 2, ("'../harp' is not known",)),
    Bad("methods harp gap", 2, ("unexpected extra argument",)),
    Bad("attacks extra", 2, ("unexpected extra argument",)),
    Bad("attacks --nope", 2, ("No such option",)),
    Bad("data extra", 2, ("No such command 'extra'",)),
    Bad("data check", 2, ("Missing argument",)),
    Bad("data check none", 66, ("there is no folder",)),
    Bad("data check digits --image-size 2", 2, ("--image-size 2",)),
    Bad("data --nope", 2, ("No such option",)),
    Bad("models resnet18 extra", 2, ("unexpected extra argument",)),
    Bad("models extra", 2, ("'extra'", "not known")),
    Bad("models --nope", 2, ("No such option",)),
]


@pytest.mark.parametrize("bad", COMMANDS, ids=str)
def test_a_bad_command(bad: Bad) -> None:
    refused(*bad.words.split(), code=bad.code, says=bad.says)


# Without those that take the switch for the argument that they lack.
DOCUMENTS = [bad for bad in COMMANDS if "requires an argument" not in bad.says[0]]


@pytest.mark.parametrize("bad", DOCUMENTS, ids=str)
def test_the_same_as_a_document(bad: Bad) -> None:
    before = tree(Path())
    result = advprune(*bad.words.split(), "--json")
    assert result.code == bad.code
    assert "advprune:" not in result.err  # but `run` shows there how far it came
    assert result.json.keys() == {"error", "exit_code"}
    assert result.json["exit_code"] == bad.code
    assert "\n" not in result.json["error"]
    assert all(part in result.json["error"] for part in bad.says)
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("run --sparsity 90", 2),
        ("run --baseline none.json", 12),
        ("run --limit-train 20", 65),
        ("run --recipe none.toml", 66),
        ("run --device cuda", 69),
        ("run --runs /proc/none", 73),
        ("run --model too_small:net", 78),
    ],
)
def test_every_exit_code_of_a_refusal_is_in_the_document(
    words: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "too_small.py").write_text(
        "from torch import nn\ndef net(num_classes): return nn.Conv2d(3, num_classes, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    where = () if "--runs" in words else ("--runs", tmp_path / "runs")
    result = advprune(*words.split(), *where, "--json")
    assert result.code == code, result
    assert "Traceback" not in result.out + result.err
    assert json.loads(result.out)["exit_code"] == code


def test_a_process_of_its_own_says_the_same(empty_folder: Path) -> None:
    command = Path(sys.executable).with_name("advprune")
    words = [command, "run", "--sparsity", "90", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "did you mean 0.90?" in json.loads(done.stdout)["error"]
    assert list(empty_folder.iterdir()) == []
