"""Promise: OpenVINO answers for a file like any engine, in the precision that the file has."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from biased_graph import divided_by, write_graph
from exported_net import CLASSES, SHAPE, Exported

from deploy.errors import DeployError
from deploy.runtime import EdgeModel, load
from deploy.runtimes.openvino import OpenVinoModel, openvino

pytest_plugins = ["export_fixtures"]
INTEGER_CONVOLUTIONS = ("Convolution u8", "Convolution i8")

ROOT = Path(__file__).parents[1]


def refusal(code: int, match: str):
    return pytest.raises(DeployError, match=match, check=lambda error: error.exit_code == code)


def opened(path: Path) -> OpenVinoModel:
    model: EdgeModel = load(path, runtime="openvino")
    assert isinstance(model, OpenVinoModel)
    return model


@pytest.mark.parametrize(
    ("form", "precision", "entry"),
    [
        ("float_onnx", "fp32", "float32 NCHW"),
        ("int8", "int8", "float32 NCHW"),
        ("camera", "int8", "uint8 NHWC"),
    ],
)
def test_info_is_read_from_the_file(exported: Exported, form: str, precision: str, entry: str):
    path: Path = getattr(exported, form)
    info = opened(path).info
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (info.precision, info.input) == (precision, entry)
    assert (info.shape, info.classes, info.threads) == (SHAPE, CLASSES, 1)
    assert (info.runtime, info.device, info.providers) == ("openvino", "cpu", ("CPU",))
    assert openvino.__version__.startswith(f"{info.version}-")


@pytest.mark.parametrize("form", ["float_onnx", "int8", "camera"])
def test_it_answers_like_onnx_runtime(exported: Exported, form: str):
    path: Path = getattr(exported, form)
    expected, got = load(path).predict(exported.images), opened(path).predict(exported.images)
    assert got.dtype == np.float32 and got.shape == expected.shape
    # Float engines add in another order; of 8-bit ones a rounding step falls elsewhere at times.
    tolerance = 1e-5 if form == "float_onnx" else 0.06
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.95


@pytest.mark.parametrize("count", [1, 2, 1024, 1025])
def test_any_number_of_images(exported: Exported, count: int):
    model = opened(exported.float_onnx)
    expected = np.resize(model.predict(exported.images), (count, CLASSES))
    got = model.predict(np.resize(exported.images, (count, *SHAPE)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_an_answer_is_not_overwritten_by_the_next(exported: Exported):
    model = opened(exported.float_onnx)
    first = model.predict(exported.images[:1])
    kept = first.copy()
    model.predict(exported.images[1:2])
    np.testing.assert_array_equal(first, kept)


def test_eight_bits_run_in_integer_kernels_and_floats_in_floats(exported: Exported):
    floats, integers = (opened(p).primitives() for p in (exported.float_onnx, exported.int8))
    assert floats["Convolution f32"] == 7 and floats["FullyConnected f32"] == 1
    # Signed or not, as the processor has it.
    assert [n for kind, n in integers.items() if kind in INTEGER_CONVOLUTIONS] == [7]
    assert integers["FullyConnected i8"] == 1
    # No bfloat16 either, which OpenVINO takes by itself where the processor has it.
    assert {name.split()[1] for name in floats} == {"f32"}
    assert not {"Convolution f32", "FullyConnected f32", "Convolution bf16"} & set(integers)


def test_what_is_no_image_or_no_answer_is_refused(exported: Exported, tmp_path: Path):
    model = opened(exported.float_onnx)
    for spoiled in (exported.images * np.float32(2), exported.images[0], exported.images[:0]):
        with refusal(65, "predict: "):
            model.predict(spoiled)
    broken = opened(divided_by(tmp_path / "bad.onnx", np.array([1.0, 0.0])))
    with refusal(65, r"bad\.onnx: gave logits that are not finite"):
        broken.predict(np.ones((1, 2, 4, 4), np.float32))


def test_what_is_no_model_is_refused(exported: Exported, tmp_path: Path):
    whole = exported.float_onnx.read_bytes()
    for number, data in enumerate((b"", b"garbage" * 9, whole[:2000], whole[:-40])):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(data)
        with refusal(65, rf"{number}\.onnx: not an ONNX file"):
            opened(path)
        # What the runtime itself says is told in one line, too.
        with refusal(65, rf"{number}\.onnx: not a model that openvino runs \(") as caught:
            OpenVinoModel(data, str(path), threads=1)
        assert "\n" not in str(caught.value)
    with refusal(65, "need one input, float32"):
        opened(write_graph(tmp_path / "fixed.onnx", np.zeros(2), batch=4))


def test_no_file_beside_the_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    np.arange(32, dtype=np.float32).tofile("secret.bin")
    thief = write_graph(tmp_path / "thief.onnx", np.zeros(2), location="secret.bin")
    # OpenVINO by itself would read it.
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(thief.read_bytes(), b""), "CPU")
    stolen = compiled({0: np.zeros((1, 2, 4, 4), np.float32)})[0]
    np.testing.assert_array_equal(stolen, [[7.5, 23.5]])
    with refusal(65, r"thief\.onnx: 'bias' lies in another file"):
        opened(thief)
    # Nor by whoever does not look first.
    with refusal(65, r"thief\.onnx: names files with weights; put all weights inside"):
        OpenVinoModel(thief.read_bytes(), str(thief), threads=1)
    # Nor where the length of the key is written in two bytes, as no library would.
    data = thief.read_bytes()
    key = data.index(b"\x0a\x08location")
    (tmp_path / "padded.onnx").write_bytes(data[:key] + b"\x0a\x88\x00location" + data[key + 10 :])
    padded = tmp_path / "padded.onnx"
    with refusal(65, r"padded\.onnx: not an ONNX file"):
        opened(padded)
    with refusal(65, r"padded\.onnx: names files"):
        OpenVinoModel(padded.read_bytes(), str(padded), threads=1)


def test_nothing_is_sent_when_the_package_is_imported(tmp_path: Path, exported: Exported):
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('would send a message')")
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from deploy.runtime import load\n"
        "load(Path(sys.argv[1]), runtime='openvino')\n"
        "sys.stdout.write(str('openvino_telemetry' in sys.modules))\n"
        "import openvino_telemetry\n"
    )
    words = [sys.executable, "-W", "error", "-c", code, str(exported.float_onnx)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False", "would send a message\n")


def test_the_device_needs_neither_torch_nor_onnxruntime_and_a_missing_package_names_the_command(
    exported: Exported,
):
    code = (
        "import sys\n"
        "for name in ('torch', 'advprune', 'export', 'onnxruntime', *sys.argv[2:]):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from deploy.errors import DeployError\n"
        "from deploy.runtime import load\n"
        "try:\n"
        "    model = load(Path(sys.argv[1]), runtime='openvino')\n"
        "except DeployError as error:\n"
        "    sys.exit(f'{error.exit_code} {error}')\n"
        "assert model.predict(np.zeros((2, *model.info.shape), np.float32)).shape == (2, 10)\n"
    )
    words = [sys.executable, "-W", "error", "-c", code, str(exported.int8)]
    subprocess.run(words, cwd=ROOT, check=True)
    done = subprocess.run([*words, "openvino"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "69 openvino is missing; type: pip install openvino\n"
