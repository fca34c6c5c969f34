"""How the network without channels compares with the dense one, in the columns of ANP-VS's tables.

White-box images are crafted on the network that they are shown to, black-box ones on the other of
the two. All of it is measured in float, on the networks that the exported files were made from.
"""

from dataclasses import asdict
from functools import partial
from typing import Any

from advprune.attacks.pgd_worst import pgd_worst
from advprune.coupling import couple
from advprune.evaluate import craft
from advprune.repro import derive
from advprune.spans import span
from advprune.vulnerability import exposure, footprint, latent_layers
from deploy.suites import Settings
from pipeline.stage import Context
from pipeline.stages.training import images_of, network_of

DENSE, CUT = "dense", "cut"


@span("latent")
def compare(context: Context, settings: Settings) -> dict[str, Any]:
    """Exposure of both networks, and what is left of the dense one; shares in [0, 1]."""
    images, recipe = images_of(context), context.recipe
    nets = {DENSE: network_of(context, "adversarial"), CUT: network_of(context, "finetune")}
    split, threat = images.splits[recipe.verify.split].first(settings.images), recipe.threat()
    attack = partial(pgd_worst, steps=settings.steps, restarts=1)
    crafted = {
        name: craft(net, split, threat, derive(recipe.seed, "latent", name), attack)
        for name, net in nets.items()
    }
    groups = couple(nets[DENSE], images.shape)
    layers = latent_layers(nets[DENSE], groups, images.shape)
    exposures = {
        name: {
            "white": asdict(exposure(net, split, crafted[name], layers)),
            "black": asdict(exposure(net, split, crafted[DENSE if name == CUT else CUT], layers)),
        }
        for name, net in nets.items()
    }
    return {**exposures, "left": asdict(footprint(nets[DENSE], nets[CUT], groups, images.shape))}
