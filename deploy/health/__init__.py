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

from advprune.spans import span
from deploy.health import engines, gradients, model, planted, strength
from deploy.health.check import Check, Evidence, Probe, Status
from deploy.replay import Targets

__all__ = ["Check", "Evidence", "Status", "check_health"]


@span("health")
def check_health(targets: Targets, evidence: Evidence) -> list[Check]:
    """All checks, in the order of their numbers.

    What belongs to a network alone is checked on every twin; what takes further attacks, on the
    twin of the last engine and on the first images.
    """
    checks: list[Check] = []
    for whole in (
        strength.threat_kept,
        strength.no_budget,
        strength.unbounded,
        strength.anchor,
        model.deterministic,
        model.gives_logits,
        gradients.zero_gradient,
    ):
        checks += whole(targets, evidence)
    for engine in targets.engines:
        checks += engines.black_box(targets, evidence, engine)
        checks += engines.agreement(targets, evidence, engine)
        for single in (engines.transfer, engines.survives_rounding, engines.worst_case):
            checks.append(single(targets, evidence, engine))
    probe = Probe(targets, evidence, list(targets.twin_of.values())[-1])
    for probing in (
        model.plain_forward,
        strength.one_step,
        strength.more_steps,
        strength.more_starts,
        strength.losses_agree,
        strength.eps_matters,
        gradients.uphill,
        gradients.steady_loss,
        planted.planted_hole,
    ):
        checks.append(probing(probe))
    checks += gradients.path(probe)
    checks += [strength.noise_loses(probe, engine) for engine in targets.engines]
    # Last: it is about what all of the above have left behind.
    checks += model.unchanged(targets, evidence)
    return sorted(checks, key=lambda check: int(check.id[1:]))
