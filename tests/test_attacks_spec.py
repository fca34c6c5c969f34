"""Attacks as people write them."""

import math

import pytest

from advprune import attacks
from advprune.attacks.losses import dlr
from advprune.attacks.pgd import pgd
from advprune.attacks.spec import parse, settings
from advprune.errors import Refused


@pytest.mark.parametrize("name", attacks.names())
def test_a_bare_name_is_the_attack(name: str) -> None:
    assert parse(name) is attacks.get(name)
    assert settings(attacks.get(name)), "every attack has something to set"


def test_settings_are_typed() -> None:
    spelled = parse("pgd_worst:steps=3, loss=dlr,confidence=inf")
    assert spelled.keywords == {"steps": 3, "loss": dlr, "confidence": math.inf}  # pyright: ignore
    assert parse("pgd:start=none,step_size=0.1").keywords == {  # pyright: ignore
        "start": "none",
        "step_size": 0.1,
    }
    assert set(settings(pgd)) == {"steps", "step_size", "loss", "start"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqare", "'sqare' is not known; did you mean 'square'"),
        ("pgd:stps=3", "setting 'stps' is not known; did you mean 'steps'"),
        ("pgd:zzz=3", "setting 'zzz' is not known; use one of steps, step_size, loss, start"),
        ("pgd:steps=many", "steps='many' must be an integer"),
        ("pgd:steps=1.5", "steps='1.5' must be an integer"),
        ("pgd:step_size=nan", "step_size='nan' must be a number"),
        ("pgd:loss=huge", "loss='huge' must be one of ce, margin, dlr"),
        ("pgd:start=late", "start='late' must be one of uniform, gaussian, none"),
        ("pgd:steps", "settings are KEY=VALUE, each once; got 'steps'"),
        ("pgd:steps=1,steps=2", "settings are KEY=VALUE, each once; got 'steps=2'"),
        ("", "'' is not known"),
    ],
)
def test_what_is_not_an_attack_is_refused(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        parse(text)
