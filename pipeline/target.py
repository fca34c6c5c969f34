"""What `advprune attack` is given: an ONNX file, a checkpoint, or a factory of networks."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from advprune.data import ImageSet
from advprune.errors import BadData, Incompatible, Refused
from advprune.evaluate import InvalidEvaluation
from advprune.models import Architecture, build, checkpoint, prunable
from advprune.models.state_dict import load_state_dict
from advprune.twin import differentiable
from deploy.health.model import are_probabilities
from deploy.replay import Targets, twin_name
from deploy.runtime import EdgeModel, open_graph, read_graph
from deploy.runtimes.torchrt import TorchModel
from pipeline.stage import check_if_recorded

CHECKPOINTS = (".pt", ".pth", ".tar", ".safetensors")
_FORWARDS = 5


@dataclass(frozen=True)
class Target:
    """One model under attack.

    Attributes:
        name: of the engine in tables: "onnx" or "torch".
        engine: what is judged.
        twins: differentiable networks of the same function; none where the graph has no gradient.
        no_twin: why there is none.
        digest: SHA-256 of the file, or of the weights.
        arch: the architecture, where one was named.
    """

    name: str
    engine: EdgeModel
    twins: dict[str, nn.Module]
    digest: str
    no_twin: str = ""
    arch: str | None = None


def open_target(
    text: str, arch: str | None, images: ImageSet, device: str, *, cast: bool = False
) -> Target:
    """The model that a command line names.

    Args:
        text: FILE.onnx, a folder with `weights.safetensors` and `architecture.json`, a checkpoint
            of torch or safetensors (with `arch`), or `pkg.mod:factory`.
        arch: a name of `advprune models`, for a checkpoint.
        cast: see `load_state_dict`.

    Raises:
        Refused: it is none of these, or the architecture is missing.
        NotFound, BadData, Incompatible, DeployError: what it names cannot be used.
    """
    path = Path(text)
    check_if_recorded(path)
    if path.suffix == ".onnx":
        return _onnx(path, images, device)
    if path.is_dir():
        net, arch = checkpoint.load(path), checkpoint.load_architecture(path).model
    elif path.suffix in CHECKPOINTS:
        if arch is None:
            raise Refused(f"{text}: weights alone; say of which network: --arch NAME")
        net = _bare(arch, images)
        load_state_dict(net, path, cast=cast)
    elif ":" in text:
        net = _bare(text, images)
    else:
        raise Refused(
            f"{text!r} is not a model; give FILE.onnx, a checkpoint folder, a file of weights "
            f"({', '.join(CHECKPOINTS)}) with --arch, or package.module:factory"
        )
    engine = TorchModel(net.to(device), images.shape)
    _check_fits(text, engine, images)
    return Target("torch", engine, {twin_name("torch"): net}, engine.info.sha256, arch=arch)


def sparsity(target: Target) -> float:
    """The share of prunable weights that are zero; of an ONNX file, of all its kernels."""
    net = next(iter(target.twins.values()))
    weights = [module.weight for module in prunable(net).values()]
    if not weights:
        weights = [buffer for buffer in net.buffers() if buffer.ndim in (2, 4)]
    total = sum(weight.numel() for weight in weights)
    return 1.0 - sum(int(weight.count_nonzero()) for weight in weights) / total


def check_answers(targets: Targets) -> None:
    """Refuse at once a model whose evaluation would mean nothing.

    Raises:
        BadData: probabilities where logits must be.
        InvalidEvaluation: other answers to the same images.
    """
    for name in targets.engines:
        answers = targets.clean[name]
        if bool(are_probabilities(answers).all()):
            raise BadData(
                f"{name}: answers add up to 1: probabilities, whose gradients vanish where the "
                "model is sure; end it before its softmax"
            )
        for _ in range(_FORWARDS - 1):
            again = targets.logits(targets.x, targets.threat)[name]
            apart = (again - answers).abs().max() / answers.abs().max().clamp_min(1e-12)
            if not apart <= 1e-4:
                raise InvalidEvaluation(
                    f"{name}: answers the same images differently ({apart:.2g} of the largest "
                    "logit apart); make it deterministic (eval mode, no random layer)"
                )


def _bare(arch: str, images: ImageSet) -> nn.Module:
    """A network that sees pixels in [0, 1] as they are: whatever else it needs is inside it."""
    channels = images.shape[0]
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return build(Architecture(arch, len(images.classes), images.shape, zeros, ones))


def _onnx(path: Path, images: ImageSet, device: str) -> Target:
    data = read_graph(path)  # once: what is judged and what is attacked are the same bytes
    engine = open_graph(data, str(path))
    _check_fits(str(path), engine, images)
    try:
        twin = differentiable(data, str(path)).to(device)
    except Incompatible as error:
        return Target("onnx", engine, {}, engine.info.sha256, no_twin=str(error))
    return Target("onnx", engine, {twin_name("onnx"): twin}, engine.info.sha256)


def _check_fits(text: str, engine: EdgeModel, images: ImageSet) -> None:
    found = (engine.info.shape, engine.info.classes)
    wanted = (images.shape, len(images.classes))
    if found != wanted:
        raise Incompatible(
            f"{text}: takes images {found[0]} and knows {found[1]} classes, {images.name} has "
            f"{wanted[0]} and {wanted[1]}; give other data, or --image-size"
        )
