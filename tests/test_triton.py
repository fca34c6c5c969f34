"""Promise: Triton reads from our files exactly what we wanted to say, in any characters."""

import errno
import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from triton_config import parse_config

from deploy import triton
from deploy.errors import DeployError
from deploy.triton import Model, Tensor, configuration, model_name, write_repository

ONNX = Model(
    "digits",
    Path("any", "model.int8.x86.onnx"),
    Tensor("images", "float32", (1, 8, 8)),
    Tensor("logits", "float32", (10,)),
    max_batch=32,
)


def parsed(model: Model) -> Any:
    return parse_config(configuration(model))


def test_an_onnx_file_is_served_by_onnx_runtime_on_cpus() -> None:
    config = parsed(ONNX)
    assert (config.name, config.backend, config.max_batch_size) == ("digits", "onnxruntime", 32)
    (entry,), (result,), (group,) = config.input, config.output, config.instance_group
    data_type = config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    kind = config.DESCRIPTOR.file.enum_types_by_name["Kind"].values_by_name
    assert (entry.name, list(entry.dims)) == ("images", [1, 8, 8])
    assert (result.name, list(result.dims)) == ("logits", [10])
    assert entry.data_type == result.data_type == data_type["TYPE_FP32"].number == 11
    assert result.label_filename == "labels.txt"
    assert (group.count, group.kind) == (1, kind["KIND_CPU"].number)
    assert config.HasField("dynamic_batching")
    parameters = {entry.key: entry.value.string_value for entry in config.parameters}
    assert parameters == {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}


def test_an_engine_is_served_by_tensorrt_on_the_gpu() -> None:
    config = parsed(replace(ONNX, file=Path("model.plan")))
    assert config.backend == "tensorrt"
    assert config.instance_group[0].kind == 1  # KIND_GPU
    assert not config.parameters  # the threads are ONNX Runtime's


@pytest.mark.parametrize(("kind", "number"), [("uint8", 2), ("float16", 10), ("float32", 11)])
def test_every_type_of_image_has_its_name(kind: str, number: int) -> None:
    config = parsed(replace(ONNX, input=Tensor("camera", kind, (8, 8, 1))))
    assert (config.input[0].data_type, list(config.input[0].dims)) == (number, [8, 8, 1])


def test_another_type_is_refused() -> None:
    with pytest.raises(DeployError, match="images is bool; serve a model of float32") as refusal:
        configuration(replace(ONNX, input=Tensor("images", "bool", (1,))))
    assert refusal.value.exit_code == 65


def test_the_parser_would_notice_a_field_that_triton_does_not_have() -> None:
    with pytest.raises(text_format.ParseError, match="max_batch"):
        parse_config(configuration(ONNX).replace("max_batch_size", "max_batch"))
    with pytest.raises(text_format.ParseError, match="TYPE_FLOAT"):
        parse_config(configuration(ONNX).replace("TYPE_FP32", "TYPE_FLOAT"))


@given(st.text(st.characters(codec="utf-8")))
def test_names_of_tensors_come_back_as_they_were(name: str) -> None:
    text = configuration(replace(ONNX, input=replace(ONNX.input, name=name)))
    assert text.isascii() and len(text.splitlines()) == len(configuration(ONNX).splitlines())
    assert parse_config(text).input[0].name == name


def test_an_escape_does_not_swallow_the_digit_behind_it() -> None:
    for name in ("\x011", "é7", '"}', "\\n", "a\nb\t"):
        assert parsed(replace(ONNX, output=replace(ONNX.output, name=name))).output[0].name == name


@given(st.text())
def test_a_name_is_made_of_letters_digits_and_two_signs(text: str) -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    assert set(model_name(text)) <= allowed
    assert [a == b for a, b in zip(model_name(text), text, strict=True) if b in allowed] == [
        True
    ] * sum(sign in allowed for sign in text)


def test_a_repository_is_laid_out_as_triton_looks_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    onnx, plan = tmp_path / "model.int8.x86.onnx", tmp_path / "engine.plan"
    onnx.write_bytes(b"graph")
    plan.write_bytes(b"engine")
    models = [replace(ONNX, file=onnx), replace(ONNX, name="gpu", file=plan)]
    write_repository(folder, models, ["cat", "émeu"])
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    names = ["config.pbtxt", "labels.txt"]
    assert found == {
        *(f"digits/{name}" for name in [*names, "1/model.onnx"]),
        *(f"gpu/{name}" for name in [*names, "1/model.plan"]),
        "SHA256SUMS",
    }
    assert (folder / "digits/1/model.onnx").read_bytes() == b"graph"
    assert (folder / "gpu/1/model.plan").read_bytes() == b"engine"
    assert (folder / "gpu/labels.txt").read_text("utf-8") == "cat\némeu\n"
    for model in models:
        text = (folder / model.name / "config.pbtxt").read_text()
        assert parse_config(text) == parsed(model)
        assert parse_config(text).name == model.name  # Triton refuses another than the folder's
    digest = hashlib.sha256(b"engine").hexdigest()
    assert f"{digest}  gpu/1/model.plan\n" in (folder / "SHA256SUMS").read_text()
    words = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(words, cwd=folder, check=True)


@pytest.mark.parametrize("labels", [[], ["a", "b\nc"], ["", "b"]])
def test_labels_that_would_shift_are_refused(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(DeployError, match="one line of text") as refusal:
        write_repository(tmp_path / "models", [ONNX], labels)
    assert refusal.value.exit_code == 65
    assert not list(tmp_path.iterdir())


def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx, folder = tmp_path / "model.onnx", tmp_path / "models"
    with pytest.raises(DeployError, match=r"model\.onnx: no such file") as refusal:
        write_repository(folder, [replace(ONNX, file=onnx)], ["a"])
    assert refusal.value.exit_code == 66
    onnx.write_bytes(b"graph")

    def full(draft: Path) -> None:
        assert (draft / "digits/1/model.onnx").exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(triton, "write_sums", full)
    with pytest.raises(DeployError, match=r"models: cannot be written .No space left") as refusal:
        write_repository(folder, [replace(ONNX, file=onnx)], ["a"])
    assert refusal.value.exit_code == 74
    assert list(tmp_path.iterdir()) == [onnx]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"graph")
    model = replace(ONNX, file=onnx)
    (tmp_path / "models").mkdir()
    with pytest.raises(DeployError, match="exists already") as refusal:
        write_repository(tmp_path / "models", [model], ["a"])
    assert refusal.value.exit_code == 73
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployError, match="cannot be created") as refusal:
        write_repository(tmp_path / "file" / "models", [model], ["a"])
    assert refusal.value.exit_code == 73
