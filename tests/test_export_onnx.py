"""Promise: the float graph is the network, in a file that tells nothing else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_net import SHAPE, Exported, make_net, run
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advprune.errors import BadData, CannotCreate, Incompatible, NotFound
from export import graph
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]


def torch_logits(net: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return make_twin(net).eval()(torch.tensor(images)).numpy()


def make_twin(net: nn.Module) -> nn.Module:
    twin = make_net()
    twin.load_state_dict(net.state_dict())
    return twin


def test_logits_are_those_of_the_network(exported: Exported):
    expected = torch_logits(exported.net, exported.images)
    assert expected.std() > 0.1
    for optimise in (False, True):
        got = run(exported.float_onnx, exported.images, optimise=optimise)
        assert np.abs(got - expected).max() < 1e-5


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batch_is_free(exported: Exported, batch: int):
    got = run(exported.float_onnx, exported.images[:batch])
    np.testing.assert_allclose(got, torch_logits(exported.net, exported.images[:batch]), atol=1e-5)


def test_ends_are_named_and_pooling_is_global(exported: Exported):
    model = onnx.load(exported.float_onnx)
    onnx.checker.check_model(model, full_check=True)
    (images,), (logits,) = model.graph.input, model.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, dims) == ("images", ["batch", *SHAPE])
    assert logits.name == "logits"
    kinds = [node.op_type for node in model.graph.node]
    assert "GlobalAveragePool" in kinds and "ReduceMean" not in kinds
    # Only the one that no convolution precedes is left.
    assert kinds.count("BatchNormalization") == 1


def test_mean_over_pixels_without_kept_axes_is_pooled_too(tmp_path: Path):
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) + x.mean((1, 2))

    path = tmp_path / "mean.onnx"
    to_onnx(Mean(), (4, 4, 4), path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("GlobalAveragePool") == 1 and kinds.count("ReduceMean") == 1
    images = np.random.default_rng(0).random((3, 4, 4, 4), dtype=np.float32)
    expected = images.mean((2, 3)) + images.mean((1, 2))
    np.testing.assert_allclose(run(path, images), expected, atol=1e-6)


def test_same_network_same_bytes_and_no_side_effects(exported: Exported, tmp_path: Path, capfd):
    net = make_net().train()
    list(net.children())[5].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    to_onnx(net, SHAPE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.float_onnx.read_bytes()
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_machine_is_in_the_file(exported: Exported):
    for path in (exported.float_onnx, exported.int8, exported.x86, exported.camera):
        data = path.read_bytes()
        for trace in (b"site-packages", b".py", b"File ", b"stack_trace", b"pytorch", b"/home"):
            assert trace not in data, (path, trace)
        assert str(Path(__file__).parents[1]).encode() not in data
        model = onnx.load(path)
        assert model.producer_name == "advprune" and not model.graph.value_info
        for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
            assert not part.metadata_props and not part.doc_string


def test_weights_keep_their_names_and_zeros(exported: Exported):
    constants = graph.constants(onnx.load(exported.float_onnx))
    for name, weight in exported.net.state_dict().items():
        if weight.ndim in (2, 4) and name.endswith("weight"):
            np.testing.assert_array_equal(constants[name] == 0, weight.numpy() == 0)


def test_metadata_is_added_to_and_survives(exported: Exported, tmp_path: Path):
    model = graph.load(exported.float_onnx)
    graph.set_metadata(model, {"labels": "cat,dog", "precision": "mine"})
    graph.save(model, tmp_path / "labelled.onnx")
    found = {e.key: e.value for e in onnx.load(tmp_path / "labelled.onnx").metadata_props}
    assert found == {"labels": "cat,dog", "precision": "mine", "input": "float32 NCHW"}


def test_parametrised_network_is_refused(tmp_path: Path):
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    net = make_net()
    parametrize.register_parametrization(net[1], "weight", Half())
    with pytest.raises(Incompatible, match=r"^export: 1 has parametrisations attached; bake"):
        to_onnx(net, SHAPE, tmp_path / "net.onnx")


def test_network_that_has_no_graph_is_refused(tmp_path: Path):
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(Incompatible, match=r"^export: Fickle cannot be turned into ONNX") as caught:
        to_onnx(Fickle(), SHAPE, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.onnx").exists()


def test_files_are_refused_in_one_line(exported: Exported, tmp_path: Path):
    with pytest.raises(NotFound):
        graph.load(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_bytes(b"not a model at all")
    with pytest.raises(BadData):
        graph.load(tmp_path / "text.onnx")
    model = graph.load(exported.float_onnx)
    with pytest.raises(CannotCreate):
        graph.save(model, tmp_path / "no folder" / "net.onnx")
    onnx.save(
        model,
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    with pytest.raises(BadData, match="another file"):
        graph.load(tmp_path / "split.onnx")
