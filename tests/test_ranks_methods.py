"""Every method on two and on four ranks is the method on one: same masks, same losses."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from on_ranks import on_ranks
from safetensors.torch import load_file, save_file
from searching import IMAGES, SCHEDULE, VARIANTS
from toy import Memory, make_net, make_task, same

from advprune.survey import survey
from advprune.train import Trained, fit
from advprune.types import Masks

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

# Weights of one constant cancel exactly, so that the sign of an attack's gradient is now and then
# that of rounding.
OBJECTIVE = {"rst": "natural"}
# The gradients of logits add up to zero over classes, and so do the scores of the channels that the
# last layer reads: which of them go is decided by rounding.
TIED = {"gap-granularity=channel"}
STOPS_EARLY = {key for key in VARIANTS if key.startswith("robustbird")}
TWENTY_STEPS = replace(SCHEDULE, epochs=10)
Found = tuple[list[float], Masks]


def search(key: str) -> Found:
    """The loss of every step, and the masks, in float64."""
    method, memory = VARIANTS[key], Memory()
    net, task = make_net(dropout=0.2).double(), make_task(name=OBJECTIVE.get(key, "pgd"))
    trained = Trained({}, [])
    if method.searches:
        trained = fit(net, IMAGES, task, TWENTY_STEPS, memory, method)
    elif method.surveys:
        trained = survey(net, IMAGES, task, 5, memory, method)  # five batches, one of them short
    losses = [metrics["loss"] for _, metrics in memory.steps if metrics]
    return losses, method.finish(net, trained.state, task)


def all_of_them(folder: Path) -> None:
    for key in VARIANTS:
        losses, masks = search(key)
        (folder / f"{key}.json").write_text(json.dumps(losses))
        save_file(masks, folder / f"{key}.safetensors")


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """By rank, the folder with what it found."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(request.param, all_of_them, folder)
    return [folder / str(rank) for rank in range(request.param)]


@cache
def alone(key: str) -> Found:
    return search(key)


@pytest.mark.parametrize("key", VARIANTS)
def test_ranks_do_what_one_process_does(key: str, found: list[Path]) -> None:
    losses, masks = alone(key)
    first, *others = [load_file(folder / f"{key}.safetensors") for folder in found]
    assert all(same(first, other) for other in others)
    assert same(first, masks) or key in TIED
    for folder in found:
        mine = json.loads((folder / f"{key}.json").read_text())
        assert mine == pytest.approx(losses, abs=1e-5)
    if VARIANTS[key].searches:
        assert len(losses) == 20 or key in STOPS_EARLY
