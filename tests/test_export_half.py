"""Promise: half precision is the float network to three digits, made from it alone."""

from pathlib import Path

import numpy as np
import pytest
from exported_net import SHAPE, Exported, run
from onnx import TensorProto

from advprune.errors import BadData, Incompatible
from deploy.replay import is_quantised
from deploy.runtime import load
from export import graph
from export.to_half import to_half

pytest_plugins = ["export_fixtures"]


@pytest.fixture(scope="module")
def half(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    graph.save(to_half(graph.load(exported.float_onnx)), path)
    return path


def test_logits_are_those_of_the_float_network(exported: Exported, half: Path) -> None:
    expected, got = run(exported.float_onnx, exported.images), run(half, exported.images)
    assert got.dtype == np.float32
    gap = np.abs(got - expected).max()
    assert 0 < gap < 5e-3 * np.abs(expected).max()


def test_an_edge_model_says_what_it_is(half: Path) -> None:
    model = load(half)
    assert (model.info.precision, model.info.input, model.info.shape) == (
        "fp16",
        "float32 NCHW",
        SHAPE,
    )
    assert not is_quantised(model)


def test_weights_are_halves_and_zeros_stay_zeros(exported: Exported, half: Path) -> None:
    floats, halves = (graph.constants(graph.load(p)) for p in (exported.float_onnx, half))
    weights = [name for name, value in floats.items() if value.ndim == 4 and value.size > 100]
    assert len(weights) >= 7
    for name in weights:
        assert halves[name].dtype == np.float16
        np.testing.assert_array_equal((halves[name] == 0)[floats[name] == 0], True)
        # Below 6e-8 a half is that or nothing.
        np.testing.assert_allclose(halves[name], floats[name], rtol=1e-3, atol=7e-8)
    kinds = {tensor.data_type for tensor in graph.load(half).graph.initializer}
    assert TensorProto.FLOAT not in kinds
    assert half.stat().st_size < 0.6 * exported.float_onnx.stat().st_size


def test_the_same_graph_gives_the_same_bytes_and_is_left_alone(
    exported: Exported, half: Path, tmp_path: Path
) -> None:
    model = graph.load(exported.float_onnx)
    before = model.SerializeToString(deterministic=True)
    graph.save(to_half(model), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == half.read_bytes()
    assert model.SerializeToString(deterministic=True) == before


def test_what_has_no_half_is_refused(exported: Exported) -> None:
    quantised = graph.load(exported.int8)
    count = graph.quantisation_nodes(quantised)
    with pytest.raises(Incompatible, match=rf"fp16: the graph is quantised \({count} Q/DQ nodes\)"):
        to_half(quantised)
    for value in (7e4, np.nan, -np.inf):
        model = graph.load(exported.float_onnx)
        weight = graph.constants(model)["5.conv2.weight"].copy()
        weight[0, 0, 0, 0] = value
        graph.put_constants(model, {"5.conv2.weight": weight})
        with pytest.raises(BadData, match=r"fp16: 5\.conv2\.weight reaches .*beyond 65504"):
            to_half(model)
