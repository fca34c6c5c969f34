"""Promise: 2:4 is counted in the file that ships, float or 8-bit, and where it breaks is named."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported_net import Exported
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from advprune.errors import Incompatible
from export import graph
from export.encodings import x86_form
from export.patterns import assert_two_in_four, groups_of_four, has_two_in_four
from export.quantize import quantize
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]

SHAPE = (3, 8, 8)
# Layers by their place in the network: 12 x 9 x 2 groups, 16 x 3, and 10 x 4.
ELIGIBLE = {"2.weight": 216, "8.weight": 48, "12.weight": 40}


def pruned_net() -> nn.Sequential:
    """Layers that can be 2:4 and are, between layers that cannot: colours, groups, six inputs."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 1, groups=3),
        nn.ReLU(),
        nn.Conv2d(12, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    rng = torch.Generator().manual_seed(0)
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(generator=rng)
    for name in ELIGIBLE:
        weight = net.get_parameter(name).data
        fours = weight.view(len(weight), -1, 4, *weight.shape[2:])
        fours *= fours.abs() >= fours.abs().topk(2, dim=2).values[:, :, 1:]
    return net


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("patterns")
    paths = {form: folder / f"{form}.onnx" for form in ("float", "int8", "x86")}
    to_onnx(pruned_net(), SHAPE, paths["float"])
    images = np.random.default_rng(0).random((128, *SHAPE), dtype=np.float32)
    quantize(paths["float"], images, paths["int8"])
    graph.save(x86_form(graph.load(paths["int8"])), paths["x86"])
    return paths


@pytest.mark.parametrize("form", ["float", "int8", "x86"])
def test_every_group_of_a_pruned_network_has_the_pattern(files: dict[str, Path], form: str):
    counts = groups_of_four(files[form])
    assert counts == {name: (total, total) for name, total in ELIGIBLE.items()}
    assert list(counts) == list(ELIGIBLE)
    assert has_two_in_four(files[form])
    assert assert_two_in_four(files[form]) == counts


@pytest.mark.parametrize("form", ["float", "int8", "x86"])
def test_one_broken_group_is_found_and_named(files: dict[str, Path], form: str, tmp_path: Path):
    path = tmp_path / "broken.onnx"
    stored = "8.weight" if form == "float" else "8.weight_quantized"
    model = graph.load(files[form])
    values = graph.constants(model)[stored].copy()
    values[3, 4:8, 0, 0] = 1, 2, 3, 0
    graph.put_constants(model, {stored: values})
    graph.save(model, path)
    assert groups_of_four(path) == groups_of_four(files[form]) | {"8.weight": (47, 48)}
    assert not has_two_in_four(path)
    with pytest.raises(
        Incompatible,
        match=r"broken\.onnx: 8\.weight has more than two non-zeros in 1 of its 48 groups of four",
    ):
        assert_two_in_four(path)
    assert assert_two_in_four(path, but=1) == groups_of_four(path)


def test_what_only_random_pruning_made_sparse_is_not_2_to_4(exported: Exported):
    # 60 % zeros: a group has the pattern with probability 0.82, and there are thousands.
    for path in (exported.float_onnx, exported.int8):
        counts = groups_of_four(path)
        assert next(iter(counts)) == "5.conv1.weight"  # the colours are three
        assert counts["5.conv1.weight"][1] == 16 * 4 * 9
        assert not has_two_in_four(path)
        with pytest.raises(Incompatible, match=r"5\.conv1\.weight has more than two non-zeros in"):
            assert_two_in_four(path)
        with pytest.raises(Incompatible, match=r"5\.conv2\.weight has more than two non-zeros in"):
            assert_two_in_four(path, but=1)


# Any weight in any layout, against counting group by group


def one_layer(node: str, weight: NDArray, folder: Path, **options: Any) -> Path:
    dims = ["n", *["c"] * (weight.ndim - 1 if node == "Conv" else 1)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in "xy"]
    body = helper.make_graph(
        [helper.make_node(node, ["x", "w"], ["y"], **options)],
        "layer",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "layer.onnx")
    return folder / "layer.onnx"


def counted(rows: NDArray) -> tuple[int, int]:
    """One by one, of rows whose last axis are the inputs."""
    fours = [
        row[start : start + 4]
        for row in rows.reshape(-1, rows.shape[-1])
        for start in range(0, rows.shape[-1], 4)
    ]
    return sum(sum(value != 0 for value in four) <= 2 for four in fours), len(fours)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 5),
    fours=st.integers(1, 3),
    kernel=st.integers(1, 3),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_groups_run_along_the_inputs_whatever_the_layout(
    tmp_path_factory: pytest.TempPathFactory,
    outputs: int,
    fours: int,
    kernel: int,
    density: float,
    seed: int,
):
    folder = tmp_path_factory.mktemp("layer")
    rng = np.random.default_rng(seed)
    shape = (outputs, 4 * fours, kernel, kernel)
    weight = (rng.normal(size=shape) * (rng.random(shape) < density)).astype(np.float32)
    by_position = weight.transpose(0, 2, 3, 1)
    assert groups_of_four(one_layer("Conv", weight, folder)) == {"w": counted(by_position)}
    matrix = weight[:, :, 0, 0]
    for node, values, options in [
        ("Gemm", matrix, {"transB": 1}),
        ("Gemm", matrix.T, {"transB": 0}),
        ("Gemm", matrix.T, {}),
        ("MatMul", matrix.T, {}),
    ]:
        path = one_layer(node, np.ascontiguousarray(values), folder, **options)
        assert groups_of_four(path) == {"w": counted(matrix)}


@pytest.mark.parametrize(
    ("node", "shape", "options"),
    [
        ("Conv", (8, 6, 1, 1), {}),
        ("Conv", (8, 3, 3, 3), {}),
        ("Conv", (8, 1, 3, 3), {"group": 8}),
        ("Conv", (8, 4, 3, 3), {"group": 2}),
        ("Gemm", (8, 6), {"transB": 1}),
        ("Gemm", (6, 8), {}),
    ],
)
def test_a_file_without_an_eligible_weight_has_no_pattern(
    tmp_path: Path, node: str, shape: tuple[int, ...], options: dict[str, int]
):
    path = one_layer(node, np.zeros(shape, np.float32), tmp_path, **options)
    assert groups_of_four(path) == {}
    assert not has_two_in_four(path)
    with pytest.raises(Incompatible, match="no weight has input channels in fours"):
        assert_two_in_four(path)


def test_two_of_four_is_the_limit(tmp_path: Path):
    for zeros in itertools.product([0.0, 1.0], repeat=4):
        weight = np.array(zeros, np.float32).reshape(1, 4, 1, 1)
        path = one_layer("Conv", weight, tmp_path)
        assert has_two_in_four(path) == (sum(zeros) <= 2)
