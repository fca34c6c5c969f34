"""Promise: what is trained through 8 bits is what ships, bit by bit, and its zeros stay zeros."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attack_nets import digit_net, digits
from exported_net import Exported, run
from torch import Tensor, nn

from advprune.attacks.pgd import pgd
from advprune.errors import BadData, Incompatible
from advprune.repro import ImageRandom, seeded
from advprune.twin import codes, differentiable
from advprune.types import Threat
from export import graph
from export.check import parity, sparsity_kept
from export.encodings import x86_form
from export.fake_quant import MOMENTUM, Codes, FakeQuant, Scales, write
from export.patterns import assert_two_in_four, groups_of_four
from export.quantize import quantize
from export.to_onnx import to_onnx

pytest_plugins = ["export_fixtures"]


def fake(float_onnx: Path, int8: Path, scales: Scales = "learned") -> FakeQuant:
    return FakeQuant(graph.load(float_onnx), graph.load(int8), scales)


def train(net: FakeQuant, images: np.ndarray, steps: int = 3, lr: float = 0.02) -> None:
    """A few steps towards random labels, which move every weight."""
    classes = net(torch.from_numpy(images[:1])).shape[1]
    labels = torch.randint(classes, (len(images),), generator=torch.Generator().manual_seed(0))
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=lr, momentum=0.9, weight_decay=1e-3)
    net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(torch.from_numpy(images)), labels).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
    net.eval()


def logits_of(net: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def twin_of(path: Path) -> nn.Module:
    return differentiable(path.read_bytes(), path.name)


@pytest.fixture(scope="module")
def trained(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeQuant, Path]:
    path = tmp_path_factory.mktemp("trained") / "int8.onnx"
    net = fake(exported.float_onnx, exported.int8)
    train(net, exported.images)
    write(net, graph.load(exported.int8), path)
    return net, path


def test_training_starts_from_the_calibrated_file(exported: Exported) -> None:
    expected = logits_of(twin_of(exported.int8), exported.images)
    net = fake(exported.float_onnx, exported.int8)
    np.testing.assert_array_equal(logits_of(net.eval(), exported.images), expected)
    np.testing.assert_array_equal(logits_of(net.train(), exported.images), expected)


def test_the_file_computes_what_was_trained(
    exported: Exported, trained: tuple[FakeQuant, Path], tmp_path: Path
) -> None:
    net, path = trained
    expected = logits_of(net, exported.images)
    before = logits_of(fake(exported.float_onnx, exported.int8), exported.images)
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_array_equal(logits_of(twin_of(path), exported.images), expected)

    x86 = tmp_path / "x86.onnx"
    graph.save(x86_form(graph.load(path)), x86)
    np.testing.assert_array_equal(run(path, exported.images), run(x86, exported.images))


def test_the_engine_answers_as_trained_on_clean_and_adversarial_images(tmp_path: Path) -> None:
    floats, int8, path, x86 = (
        tmp_path / f"{name}.onnx" for name in ("float", "int8", "trained", "x86")
    )
    x = digits(200).images / 255
    to_onnx(digit_net(), (1, 8, 8), floats)
    quantize(floats, x[:150].numpy(), int8)
    net = fake(floats, int8)
    train(net, x[:64].numpy(), steps=5)
    write(net, graph.load(int8), path)
    graph.save(x86_form(graph.load(path)), x86)

    labels = net(x).argmax(dim=1)
    rng = ImageRandom(0, torch.arange(len(x)))
    adversarial = pgd(net, x, labels, Threat(eps=0.15), rng, steps=5)
    fooled = net(adversarial).argmax(dim=1) != labels
    assert fooled.double().mean() > 0.3  # gradients through rounding are worth something
    for images in (x.numpy(), adversarial.numpy()):
        found = parity(logits_of(net, images), run(x86, images, optimise=True))
        assert found["rows_differing"] <= 0.03
        assert found["argmax_agreement"] >= 0.999


def test_zeros_stay_zeros(exported: Exported, trained: tuple[FakeQuant, Path]) -> None:
    _, path = trained
    kept = sparsity_kept(exported.float_onnx, path)
    assert any(after < before for before, after in kept.values())
    assert all(after > before // 2 for before, after in kept.values())


def test_two_in_four_survives_training(exported: Exported, tmp_path: Path) -> None:
    model = graph.load(exported.float_onnx)
    constants = graph.constants(model)
    for name in groups_of_four(exported.float_onnx):
        weight = constants[name].copy()
        weight[:, 1::4] = weight[:, 2::4] = 0
        graph.put_constants(model, {name: weight})
    floats, int8, path = (tmp_path / f"{name}.onnx" for name in ("float", "int8", "trained"))
    graph.save(model, floats)
    quantize(floats, exported.calibration, int8)
    net = fake(floats, int8)
    train(net, exported.images)
    write(net, graph.load(int8), path)
    assert assert_two_in_four(path)


def test_every_scale_of_the_file_is_that_of_the_network(
    exported: Exported, trained: tuple[FakeQuant, Path]
) -> None:
    net, path = trained
    constants, before = (graph.constants(graph.load(p)) for p in (path, exported.int8))
    assert constants.keys() == before.keys()
    steps = net.codes.calibrated * net.codes.shift.detach().exp()
    for name, step in zip(net.codes.steps, steps.tolist(), strict=True):
        assert constants[name] == np.float32(step) and constants[name].dtype == np.float32
    moved = [name for name in net.codes.steps if constants[name] != before[name]]
    assert len(moved) > len(net.codes.steps) / 2
    for layer in net.codes.layers:
        codes, scales = constants[layer.codes], constants[layer.scales]
        assert codes.dtype == np.int8 and (scales > 0).all()
        weight = net.codes.get_parameter(net.codes._weights[layer.weight]).detach().numpy()
        rest = np.abs(weight - codes * scales.reshape(-1, *[1] * (weight.ndim - 1)))
        assert (rest <= scales.reshape(-1, *[1] * (weight.ndim - 1)) * 0.5001)[weight != 0].all()
        # A bias lies on the grid of the sums that it is added to.
        units = constants[layer.rounded] / (constants[layer.step] * scales)
        assert (np.abs(units - np.rint(units)) <= 1e-3 + np.abs(units) * 2**-22).all()


def test_gradients_are_those_of_the_rounded_network(exported: Exported) -> None:
    """Straight through rounding: as if the rounded weights themselves had been in the float net."""
    net = fake(exported.float_onnx, exported.int8).train()
    images = torch.from_numpy(exported.images[:8])
    net(images).square().sum().backward()
    twin = net.codes.get_parameter(net.codes._weights["5.conv2.weight"])
    layer = next(one for one in net.codes.layers if one.weight == "5.conv2.weight")
    assert twin.grad is not None
    kept = twin.detach() != 0
    assert (twin.grad[~kept] == 0).all() and (twin.grad[kept] != 0).double().mean() > 0.5

    with torch.no_grad():
        made = net.codes()
        rounded = made[layer.codes].clone()
    rounded.requires_grad_()

    class Replaced(Codes):
        def forward(self) -> dict[str, Tensor]:
            return made | {layer.codes: rounded}

    net.codes.__class__ = Replaced
    net(images).square().sum().backward()
    assert rounded.grad is not None
    expected = rounded.grad / made[layer.scales][:, None, None, None]
    torch.testing.assert_close(twin.grad[kept], expected[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low", [-3.0, 0.0])
def test_a_learned_scale_has_the_gradient_of_lsq(low: float) -> None:
    x = torch.linspace(low, 3, 400)
    scale = torch.tensor(0.015, requires_grad=True)
    weights = torch.linspace(-1, 2, 400)
    zero = torch.zeros((), dtype=torch.int8)
    (codes.dequantize(codes.quantize(x, scale, zero), scale, zero) * weights).sum().backward()
    steps = (x / 0.015).double()
    cut = (steps.round() < -128) | (steps.round() > 127)
    by_hand = torch.where(cut, steps.round().clamp(-128, 127), steps.round() - steps)
    assert cut.any() and not cut.all()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float((by_hand * weights).sum()), rel=1e-4)


def test_observed_scales_follow_the_largest_values(exported: Exported) -> None:
    net = fake(exported.float_onnx, exported.int8, "observed")
    assert not net.codes.shift.requires_grad
    bright = np.ones_like(exported.images)
    names, before = net.codes.steps, net.codes.calibrated.clone()
    logits_of(net.eval(), bright)
    assert (net.codes.shift == 0).all()  # an attack, in eval mode, moves nothing
    model = graph.load(exported.int8)
    entry = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    logits_of(net.train(), bright)
    place = names.index(entry.input[1])
    largest = ((1 - np.array([0.49, 0.48, 0.44])) / np.array([0.2, 0.21, 0.22])).max()
    expected = (1 - MOMENTUM) * before[place] + MOMENTUM * largest / 127
    after = net.codes.calibrated * net.codes.shift.exp()
    assert float(after[place]) == pytest.approx(float(expected), rel=1e-5)


def test_an_attack_makes_the_codes_once(exported: Exported) -> None:
    net = fake(exported.float_onnx, exported.int8)
    made = 0

    class Counted(Codes):
        def forward(self) -> dict[str, Tensor]:
            nonlocal made
            made += 1
            return super().forward()

    net.codes.__class__ = Counted
    x = torch.from_numpy(exported.images[:4])
    rng = ImageRandom(0, torch.arange(4))
    pgd(net, x, torch.zeros(4, dtype=torch.long), Threat(eps=0.1), rng, steps=7)
    assert made == 1


def test_a_module_that_is_called_twice_has_one_weight(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, 1, 1)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(torch.relu(self.conv(x))))
            return self.last(x.mean((2, 3)))

    with seeded(0, "twice"):
        net = Twice()
    floats, int8, path = (tmp_path / f"{name}.onnx" for name in ("float", "int8", "trained"))
    to_onnx(net, (4, 6, 6), floats)
    images = np.random.default_rng(0).random((128, 4, 6, 6), dtype=np.float32)
    quantize(floats, images, int8)
    learner = fake(floats, int8)
    assert len(list(learner.parameters())) == 1 + 4
    train(learner, images)
    write(learner, graph.load(int8), path)
    np.testing.assert_array_equal(logits_of(twin_of(path), images), logits_of(learner, images))


@pytest.mark.parametrize("place", ["weight0", "bias0", "shift"])
def test_what_is_not_finite_is_never_written(
    exported: Exported, tmp_path: Path, place: str
) -> None:
    net = fake(exported.float_onnx, exported.int8)
    with torch.no_grad():
        net.codes.get_parameter(place).view(-1)[0] = float("nan")
    with pytest.raises(BadData, match=r"not finite after training; lower quantize\.lr"):
        write(net, graph.load(exported.int8), tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def test_a_graph_without_a_gradient_is_refused(exported: Exported) -> None:
    model = graph.load(exported.int8)
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    node.op_type = "LpPool"
    with pytest.raises(Incompatible, match="no training through LpPool"):
        FakeQuant(graph.load(exported.float_onnx), model, "learned")
