"""The radius of the attack, as people write it."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from advprune.types import Norm


def check_eps(value: Any, norm: Norm = "linf") -> float:
    """The radius of the attack: a number, or text such as "0.15" or "8/255".

    At most 1 in the maximum norm; of any length in the Euclidean one.

    Raises:
        ValueError: with the value that was probably meant.
    """
    above, slash, below = str(value).partition("/")
    try:
        eps = float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        eps = math.nan
    if 0.0 <= eps <= 1.0 or (norm == "l2" and 0.0 <= eps < math.inf):
        return abs(eps)  # minus zero has a name of its own
    hint = f"; did you mean {eps:g}/255?" if 1.0 < eps <= 255.0 else ""
    raise ValueError(f"eps is the radius of the attack, 0 <= eps <= 1, as 0.15 or 8/255{hint}")


def _eps(value: Any, info: ValidationInfo) -> float:
    return check_eps(value, info.data.get("norm", "linf"))


Eps = Annotated[float, BeforeValidator(_eps)]
