"""Is the model one that can be attacked at all: a fixed function that gives logits?"""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.types import Images, Logits
from deploy.health.check import Check, Evidence, Probe, Status, count
from deploy.replay import Targets

_GRADIENTS = {torch.autograd.grad.__code__, torch.autograd.backward.__code__}


def deterministic(targets: Targets, evidence: Evidence) -> list[Check]:
    """H3. Five forwards: equal counts of right answers, and logits of length one within 1e-4.

    (The rule of AutoAttack, Croce and Hein 2020.)
    """
    repeats = [targets.clean] + [targets.logits(targets.x, targets.threat) for _ in range(4)]
    checks = []
    for engine in targets.engines:
        units = [F.normalize(logits[engine]) for logits in repeats]
        farthest = max((unit - units[0]).norm(dim=1).max().item() for unit in units)
        counts = {count(targets.survivors(logits)[engine]) for logits in repeats}
        steady = farthest <= 1e-4 and len(counts) == 1
        what = f"{engine}: distance of normalised logits over five forwards"
        checks.append(Check("H3", what, farthest, "OK" if steady else "INVALID"))
    return checks


def gives_logits(targets: Targets, evidence: Evidence) -> list[Check]:
    """H4. Answers that are not negative and add up to one are probabilities: their logarithm's
    gradient vanishes where the network is sure."""
    checks = []
    for engine in targets.engines:
        share = are_probabilities(targets.clean[engine]).double().mean().item()
        what = f"{engine}: share of images whose answers are probabilities, not logits"
        checks.append(Check("H4", what, share, "OK" if share < 1.0 else "SUSPECT"))
    return checks


def are_probabilities(answers: Logits) -> Tensor:
    """bool (N,): no answer is negative, and they add up to one within 1e-5."""
    return (answers >= 0).all(dim=1) & ((answers.sum(dim=1) - 1.0).abs() < 1e-5)


def plain_forward(probe: Probe) -> Check:
    """H6. A forward that draws random numbers or follows a gradient is no fixed function."""
    before = torch.get_rng_state()
    # In a thread of its own: a profile function belongs to a thread, and this one may have one.
    with torch.random.fork_rng(devices=[]), ThreadPoolExecutor(1) as thread:
        calls = thread.submit(_gradient_calls, probe.twin, probe.x[:8]).result()
        drew = not torch.equal(before, torch.get_rng_state())
    found = calls + int(drew)
    what = f"{probe.name}: gradients taken and random draws in one forward"
    return Check("H6", what, found, "INVALID" if found else "OK")


def _gradient_calls(net: nn.Module, x: Images) -> int:
    """Calls of autograd from Python in one forward, whoever imported it from where."""
    calls = 0

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code in _GRADIENTS

    # A profile function, and not a trace function: that one belongs to debuggers and to coverage.
    sys.setprofile(watch)
    try:
        net(x)
    finally:
        sys.setprofile(None)
    return calls


def unchanged(versions: list[Targets]) -> list[Check]:
    """H25. The attacks left every twin as it was, and in eval mode.

    Args:
        versions: the targets, and what each thread had of them for its own.
    """
    moved = training = 0
    for targets in versions:
        after = targets.digests()
        moved += sum(after[name] != digest for name, digest in targets.before.items())
        modules = [module for twin in targets.twins.values() for module in twin.modules()]
        training += sum(module.training for module in modules)
    status: Status = "INVALID" if moved or training else "OK"
    what = "twins whose weights the attacks changed, and modules in training mode"
    return [Check("H25", what, moved + training, status)]
