"""One order for all layers, in numpy."""

from collections.abc import Mapping

import numpy as np


def largest(scores: Mapping[str, np.ndarray], keep: int) -> dict[str, np.ndarray]:
    """Which of all scores together are the `keep` largest, without any floor for a layer."""
    ranked = sorted(
        ((value, name, index) for name, s in scores.items() for index, value in np.ndenumerate(s)),
        key=lambda entry: -entry[0],
    )
    kept = {name: np.zeros(s.shape, dtype=bool) for name, s in scores.items()}
    for _, name, index in ranked[:keep]:
        kept[name][index] = True
    return kept
