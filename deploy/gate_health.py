"""Whether the evaluation behind verdicts can be believed. Standard library only, like the gate."""

from deploy.errors import DeployError
from deploy.outcome import Check
from deploy.verdicts import Verdicts


def health_checks(verdicts: Verdicts) -> list[Check]:
    """One check, which leaves the gate open where the evaluation is invalid; none if not looked."""
    if verdicts.health is None:
        return []
    invalid, suspect = verdicts.health["invalid"], verdicts.health["suspect"]
    if invalid:
        message = f"evaluation is invalid: {'; '.join(invalid)}"
        return [Check("evaluation health", "INCONCLUSIVE", message)]
    noted = f", suspect: {', '.join(suspect)}" if suspect else ""
    message = f"evaluation: {verdicts.health['checks']} checks{noted}"
    return [Check("evaluation health", "PASS", message)]


def demand_sound(verdicts: Verdicts) -> None:
    """Raises DeployError 11 where nothing should be held against these verdicts."""
    for check in health_checks(verdicts):
        if check.status != "PASS":
            raise DeployError(f"gate: {check.message}; a baseline must be believed", 11)
