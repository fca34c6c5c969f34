"""timm's classifiers are built by name, with fresh weights; without timm the remedy is named."""

import sys
from typing import Any

import pytest
import torch
from tiny_run import advprune, refusal

from advprune import models
from advprune.errors import Refused, Unavailable
from advprune.models import Architecture, timm_nets

timm = pytest.importorskip("timm")


def arch(model: str, channels: int = 3, side: int = 32) -> Architecture:
    return Architecture(model, 7, (channels, side, side), (0.5,) * channels, (0.5,) * channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_and_channels_are_passed_and_nothing_is_fetched(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = timm.create_model, list[dict[str, Any]]()

    def noting(name: str, **settings: Any) -> object:
        asked.append(settings)
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", noting)
    net = models.build(arch("timm:resnet10t", channels), seed=3)
    assert asked == [{"pretrained": False, "num_classes": 7, "in_chans": channels}]
    images = torch.rand(2, channels, 32, 32)
    assert net.eval()(images).shape == (2, 7)
    again = models.build(arch("timm:resnet10t", channels), seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    for call in (models.source_digest, lambda name: models.build(arch(name))):
        with pytest.raises(Refused, match=r"did you mean timm:resnet18 or"):
            call("timm:resnet18x")
    # The name of published weights is refused with that of the network; they are not fetched.
    with pytest.raises(Refused, match=r"did you mean timm:resnet18 or"):
        models.source_digest("timm:resnet18.a1_in1k")
    with pytest.raises(Refused, match=r"is not known; timm\.list_models"):
        models.source_digest("timm:hf_hub/someone/something")


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable):
        timm_nets.create("resnet18", 2, 3)
    message = refusal(advprune("run", "--model", "timm:resnet18"), 69)
    assert message.endswith("pip install timm")
    (row,) = [row for row in advprune("models", "--json").json if row["model"] == "timm:NAME"]
    assert row["what it is"] == "timm's classifiers; not installed: pip install timm"


def test_the_list_counts_them() -> None:
    (row,) = [row for row in advprune("models", "--json").json if row["model"] == "timm:NAME"]
    assert row["what it is"] == f"any of timm's {len(timm.list_models())} classifiers"
