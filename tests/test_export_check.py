"""Promise: a file that is not the network, or only says that it is 8-bit, is found out."""

from pathlib import Path

import numpy as np
import pytest
from exported_net import Exported, run

from advprune.errors import BadData, Incompatible
from export import graph
from export.check import (
    assert_fused,
    assert_same_function,
    operator_counts,
    parity,
    sparsity_kept,
    weights,
)

pytest_plugins = ["export_fixtures"]


def test_parity_counts_what_it_says():
    reference = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 0]], np.float32)
    engine = reference.copy()
    engine[1] = [0, 2, 2.5]
    engine[3, 0] += np.float32(5e-6)
    result = parity(reference, engine)
    assert result["argmax_agreement"] == 0.75
    assert result["max_logit_gap"] == 2.5
    assert result["mean_logit_gap"] == pytest.approx(2.5 / 12, rel=1e-4)
    assert result["rows_differing"] == 0.25
    assert parity(reference, reference) == {
        "argmax_agreement": 1.0,
        "max_logit_gap": 0.0,
        "mean_logit_gap": 0.0,
        "rows_differing": 0.0,
    }


def test_parity_refuses_what_cannot_be_compared():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(Incompatible, match="shapes differ"):
        parity(logits, logits[:1])
    with pytest.raises(BadData, match="need logits"):
        parity(logits[:0], logits[:0])
    with pytest.raises(BadData, match="not finite"):
        parity(logits, logits * np.nan)


def test_x86_form_runs_on_integers(exported: Exported):
    counts = assert_fused(exported.x86)
    assert counts["QLinearConv"] == 7
    assert counts["QLinearAdd"] == 3
    assert counts["QLinearGlobalAveragePool"] == 1
    assert "Conv" not in counts and "Add" not in counts


@pytest.mark.parametrize("form", ["float_onnx", "int8"])
def test_float_kernels_are_found(exported: Exported, form: str):
    path: Path = getattr(exported, form)
    counts = operator_counts(path)
    assert counts.get("Conv", 0) + counts.get("FusedConv", 0) > 0
    with pytest.raises(Incompatible, match="in float; write the x86 form"):
        assert_fused(path)


def test_zeros_survive(exported: Exported):
    kept = sparsity_kept(exported.float_onnx, exported.int8)
    expected = {
        name: int((value != 0).sum())
        for name, value in exported.net.state_dict().items()
        if value.ndim in (2, 4) and name.endswith("weight")
    }
    assert {name: before for name, (before, _) in kept.items()} == expected
    assert all(after <= before for before, after in kept.values())
    total_before, total_after = (sum(column) for column in zip(*kept.values(), strict=True))
    assert 0.85 * total_before < total_after < total_before
    assert sparsity_kept(exported.float_onnx, exported.x86) == kept


def test_zero_that_comes_back_is_found(exported: Exported, tmp_path: Path):
    model = graph.load(exported.int8)
    codes = graph.constants(model)["5.conv2.weight_quantized"].copy()
    assert codes[codes == 0].size
    codes[np.unravel_index(np.argmin(np.abs(codes)), codes.shape)] = 1
    graph.put_constants(model, {"5.conv2.weight_quantized": codes})
    graph.save(model, tmp_path / "grown.onnx")
    with pytest.raises(Incompatible, match=r"5\.conv2\.weight has 1 weights that its mask removed"):
        sparsity_kept(exported.float_onnx, tmp_path / "grown.onnx")


def test_weights_are_found_behind_dequantisation(exported: Exported):
    floats, codes = weights(exported.float_onnx), weights(exported.int8)
    assert floats.keys() == codes.keys() and len(floats) == 8
    assert all(value.dtype == np.int8 for value in codes.values())


def test_parity_of_the_real_files(exported: Exported):
    result = parity(run(exported.float_onnx, exported.images), run(exported.x86, exported.images))
    assert result["argmax_agreement"] >= 0.95 and result["rows_differing"] > 0.5


def test_two_encodings_are_one_function(exported: Exported, tmp_path: Path):
    assert_same_function(exported.int8, [exported.x86], exported.images)
    model = graph.load(exported.x86)
    name = "5.conv2.weight_scale"
    scales = graph.constants(model)[name].copy()
    scales[3] *= 1.05
    graph.put_constants(model, {name: scales})
    graph.save(model, tmp_path / "other.onnx")
    with pytest.raises(Incompatible, match=r"other.onnx: gives \d+ of 64 images other logits"):
        assert_same_function(
            exported.int8, [exported.x86, tmp_path / "other.onnx"], exported.images
        )


@pytest.mark.parametrize("value", [0.0, -0.1, np.nan, np.inf])
@pytest.mark.parametrize("scale", ["5.conv2.weight_scale", "images_scale"])
def test_a_scale_that_no_engine_takes_is_refused(
    exported: Exported, tmp_path: Path, scale: str, value: float
):
    model = graph.load(exported.int8)
    quantiser = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    name = quantiser.input[1] if scale == "images_scale" else scale
    scales = graph.constants(model)[name].copy()
    scales.reshape(-1)[-1] = value
    graph.put_constants(model, {name: scales})
    path = tmp_path / "bad.onnx"
    with pytest.raises(BadData, match=f"scale {name} of .* is {value:g}; engines divide by it"):
        graph.save(model, path)
    assert not path.exists()
    path.write_bytes(model.SerializeToString())
    for use in (graph.load, assert_fused, weights):
        with pytest.raises(BadData, match="engines divide by it"):
            use(path)
