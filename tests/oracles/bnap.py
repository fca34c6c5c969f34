"""BNAP weight by weight, with the norm of each layer given by hand."""

import numpy as np
from torch import nn


def effective(net: nn.Module, norm_of: dict[str, str | None]) -> dict[str, np.ndarray]:
    """|gamma_c w| of each weight of the layers named, by the name of the weight."""
    values = {name: value.detach().numpy() for name, value in net.named_parameters()}
    found = {}
    for layer, norm in norm_of.items():
        weight = values[f"{layer}.weight"]
        scores = np.empty_like(weight)
        for place in np.ndindex(*weight.shape):
            gamma = values[f"{norm}.weight"][place[0]] if norm else 1.0
            scores[place] = abs(gamma * weight[place])
        found[f"{layer}.weight"] = scores
    return found


def kept(scores: dict[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """The largest of all layers together; the largest of each layer first of all."""
    ranked = []
    for place, (name, values) in enumerate(scores.items()):
        flat = values.ravel()
        best = int(flat.argmax())
        ranked += [
            (-np.inf if i == best else -float(value), place, i, name)
            for i, value in enumerate(flat)
        ]
    masks = {name: np.zeros(values.size, dtype=bool) for name, values in scores.items()}
    for _, _, i, name in sorted(ranked)[:keep]:
        masks[name][i] = True
    return {name: masks[name].reshape(values.shape) for name, values in scores.items()}
