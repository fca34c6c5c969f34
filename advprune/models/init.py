"""The first weights of the project's own networks."""

from torch import nn


def he_(module: nn.Module) -> None:
    """Initialise every convolution in place from a zero-mean normal with variance 2 / fan-out.

    He et al. 2015, "Delving deep into rectifiers", eq. 14: fan-out keeps the variance of gradients
    on their way back through ReLU. Batch norms start at one and zero and linear layers uniform in
    ±1/√fan-in, which are torch's own defaults.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
