"""timm's classifiers, where that package is installed; always with fresh weights.

Nothing is downloaded: weights come from a file (`--weights`), which whoever has it has looked at.
timm is imported where it is used, and is an extra: it brings the client of a model hub along.
"""

import difflib
import importlib.util
from types import ModuleType

from torch import nn

from advprune.errors import Refused, Unavailable


def timm_count() -> int | None:
    """How many classifiers timm has; None where it is not installed."""
    return len(_timm().list_models()) if importlib.util.find_spec("timm") else None


def check(name: str) -> None:
    """Raises Unavailable without timm, Refused where it knows no such classifier."""
    known: list[str] = _timm().list_models()
    if name not in known:
        # "resnet18.a1_in1k" names weights, which are not fetched.
        nearest = difflib.get_close_matches(name.partition(".")[0], known)
        hint = (
            f"did you mean {' or '.join(f'timm:{near}' for near in nearest)}? " if nearest else ""
        )
        raise Refused(f"model 'timm:{name}' is not known; {hint}timm.list_models() lists them all")


def create(name: str, classes: int, channels: int) -> nn.Module:
    """A classifier of timm whose first layer reads `channels` channels; refusals as `check`."""
    check(name)
    return _timm().create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise Unavailable(f"timm is not installed ({error}); pip install timm") from error
    return timm
