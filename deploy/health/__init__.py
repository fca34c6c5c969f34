"""Whether an evaluation can be believed: signs of attacks that failed for the wrong reason.

A robust accuracy is an upper bound, and a masked gradient makes it a bad one. No single sign
suffices, so 25 are taken; each is OK, SUSPECT or INVALID.

H1 threat model kept           H2 eps = 0 changes nothing     H3 the same answer every time
H4 logits, not probabilities   H5 gradients are not zero      H6 nothing random in the forward
H7 many steps beat one         H8 twice the steps add nothing H9 the loss has stopped rising
H10 more starts add nothing    H11 two losses agree           H12 a larger eps breaks more
H13 an unbounded attack wins   H14 noise does not win         H15 a black box does not win
H16 transfer does not win      H17 no success is forgotten    H18 the loss is steady
H19 gradients point uphill     H20 twin and engine agree      H21 rounding does not help
H22 a planted hole is found    H23 a plain network falls      H24 the headline is the worst case
H25 the model was not changed

(After the checks of AutoAttack, Croce and Hein 2020, the indicators of attack failure, Pintor et
al. 2022, and the test of Zimmermann et al. 2022.)
"""

from collections.abc import Callable
from functools import partial

from advprune.spans import span
from deploy.health import engines, gradients, model, planted, strength
from deploy.health.check import Check, Evidence, Probe, Status
from deploy.parallel import each
from deploy.replay import Targets

__all__ = ["Check", "Evidence", "Status", "check_health"]


@span("health")
def check_health(targets: Targets, evidence: Evidence) -> list[Check]:
    """All checks, in the order of their numbers.

    What belongs to a network alone is checked on every twin; what takes further attacks, on the
    twin of the last engine and on the first images.
    """
    probe = Probe(targets, evidence, list(targets.twin_of.values())[-1])
    # Alone: whoever draws meanwhile would be taken for the network. And what several ask for, once.
    alone, _ = [model.plain_forward(probe)], probe.once
    jobs: list[Callable[[Probe], list[Check]]] = [partial(_of_all, check) for check in _OF_ALL]
    jobs += [partial(_of_engine, engine) for engine in targets.engines]
    # In a ball of no size there is no way uphill, and nothing is hidden; H2 says that it has none.
    moot = (gradients.uphill, planted.planted_hole) if targets.threat.eps == 0 else ()
    jobs += [partial(_of_one, check) for check in _OF_ONE if check not in moot]
    jobs += [gradients.path]
    jobs += [partial(_noise, engine) for engine in targets.engines]

    def run(job: Callable[[Probe], list[Check]]) -> tuple[list[Check], Targets]:
        own = probe.apart()
        return job(own), own.targets

    done = each(run, jobs)
    checks = alone + [check for found, _ in done for check in found]
    # Last: it is about what all of the above have left behind.
    checks += model.unchanged([targets, *(own for _, own in done)])
    return sorted(checks, key=lambda check: int(check.id[1:]))


_OF_ALL = (
    strength.unbounded,  # the longest ones first
    strength.no_budget,
    gradients.zero_gradient,
    strength.threat_kept,
    strength.anchor,
    model.deterministic,
    model.gives_logits,
)
_OF_ONE = (
    strength.more_steps,
    strength.eps_matters,
    strength.more_starts,
    planted.planted_hole,
    strength.losses_agree,
    gradients.steady_loss,
    strength.one_step,
    gradients.uphill,
)


def _of_all(check: Callable[[Targets, Evidence], list[Check]], probe: Probe) -> list[Check]:
    return check(probe.targets, probe.evidence)


def _of_one(check: Callable[[Probe], Check], probe: Probe) -> list[Check]:
    return [check(probe)]


def _of_engine(engine: str, probe: Probe) -> list[Check]:
    given = probe.targets, probe.evidence, engine
    pairs = [*engines.black_box(*given), *engines.agreement(*given)]
    singles = (engines.transfer, engines.survives_rounding, engines.worst_case)
    return [*pairs, *(single(*given) for single in singles)]


def _noise(engine: str, probe: Probe) -> list[Check]:
    return [strength.noise_loses(probe, engine)]
