"""torchvision's classifiers, always with fresh weights: nothing is downloaded."""

from torch import nn

from advprune.models.init import he_

# Their auxiliary heads would make the output a tuple in training mode. `init_weights` left out
# makes them warn.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def torchvision_names() -> list[str]:
    """The names of torchvision's classifiers, without prefix."""
    # Importing torchvision takes longer than a command that needs none of it may take.
    from torchvision import models

    return models.list_models(module=models)


def create(name: str, classes: int, channels: int) -> nn.Module:
    """A torchvision classifier whose first convolution reads `channels` channels."""
    from torchvision import models

    auxiliary = {"aux_logits": False, "init_weights": True} if name in _WITH_AUXILIARY_HEADS else {}
    net = models.get_model(name, weights=None, num_classes=classes, **auxiliary)
    if channels != 3:
        _read(net, channels)
    return net


def _read(net: nn.Module, channels: int) -> None:
    """Replace the first convolution, which reads RGB in every torchvision classifier."""
    path, old = next((p, m) for p, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # pyright: ignore[reportArgumentType]
        old.stride,  # pyright: ignore[reportArgumentType]
        old.padding,  # pyright: ignore[reportArgumentType]
        bias=old.bias is not None,
    )
    he_(new)
    net.set_submodule(path, new)
