"""`advprune attack`: how robust is any model, ours or not, exported or not?"""

import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from advprune.attacks.spec import parse
from advprune.data import ImageSet, load
from advprune.errors import Refused
from advprune.evaluate import InvalidEvaluation
from advprune.method import get
from deploy.files import demand_writable
from deploy.findings import show
from deploy.health import Check
from deploy.replay import Targets
from deploy.verify import judge
from deploy.words import interval
from pipeline import apb
from pipeline.apb.entries import key_of
from pipeline.devices import fix_arithmetic, resolve_device
from pipeline.files import write_json
from pipeline.listed import HO_FMN, listed
from pipeline.recipe import Recipe
from pipeline.resolve import resolve
from pipeline.target import Target, check_answers, open_target, sparsity

PROTOCOLS = ("ours", "apb")
_OF_RECIPE = ("data", "data_dir", "image_size", "limit_test", "eps", "norm", "seed", "device")


def attack(values: dict[str, Any]) -> int:
    """Exit 0, or 11 where the evaluation cannot be believed."""
    _check_words(values)
    recipe, _ = resolve({key: values[key] for key in _OF_RECIPE}, settings=values["set"])
    # A suite, but for what --set says.
    settings = recipe.verify.model_copy(update={"suite": values["suite"]}).settings(recipe.seed)
    fix_arithmetic(recipe.threads)
    device = resolve_device(recipe.device)
    images = load(
        recipe.data,
        data_dir=recipe.data_dir,
        split_seed=recipe.split_seed,
        limit_test=recipe.limit_test,
        reading=recipe.reading(),
    ).to(device)
    target = open_target(values["target"], values["arch"], images, device, cast=values["cast"])
    result: dict[str, Any] = {
        "schema": 1,
        "target": {"name": values["target"], "runtime": target.name, "sha256": target.digest},
        "data": {"name": images.name, "digest": images.digest},
        "threat": recipe.threat().to_dict(),
    }
    split, engines = images.test.first(settings.images), {target.name: target.engine}
    targets = Targets(target.twins, engines, split, recipe.threat(), settings.batch_size)
    check_answers(targets)
    if values["attack"]:
        result |= listed(values["attack"], targets, images.val, recipe.seed, values["trials"])
    elif target.twins:
        found = judge(targets, images.digest, settings)
        result |= {
            "indices": found.indices,
            "verdicts": found.verdicts[target.name],
            "curve": found.curve,
            "health": [asdict(check) for check in found.health],
            "protocol": found.protocols[target.name],
        }
    else:
        raise Refused(f"{target.no_twin} (add --attack square)")
    if values["protocol"] == "apb":
        result["apb"] = _apb(values, target, targets, images, recipe)
    return _finish(values, result)


def _check_words(values: dict[str, Any]) -> None:
    """Refuse at once what would else be found out after the attacks.

    Raises:
        Refused: a protocol, method or attack that is not known, or no trials.
        DeployError: 73, the result cannot be written where it is wanted.
    """
    if values["protocol"] not in PROTOCOLS:
        known = " or ".join(PROTOCOLS)
        raise Refused(f"--protocol {values['protocol']!r} is not known; use {known}")
    if values["trials"] < 1:
        raise Refused(f"--trials {values['trials']}: must be at least 1")
    if values["method"] is not None:
        get(values["method"])
    for spec in values["attack"] or ():
        if spec != HO_FMN:
            parse(spec)
    if values["out"] is not None:
        demand_writable(values["out"])


def _apb(
    values: dict[str, Any], target: Target, targets: Targets, images: ImageSet, recipe: Recipe
) -> dict[str, Any]:
    """The benchmark's numbers for the same model, and its words for it."""
    if not target.twins:
        raise Refused("--protocol apb: AutoAttack needs a gradient, and this graph gives none")
    card = None if values["method"] is None else get(values["method"]).card
    twin = targets.models[targets.twin_of[target.name]]
    gone = sparsity(target)
    return {
        "model_key": apb.model_key(
            target.arch,
            images.shape,
            images.classes,
            values["structured"],
            gone,
            "AP" if card is None else key_of(card),
        ),
        "sparsity": gone,
        "taxonomy": None if card is None else apb.taxonomy(card),
        **apb.evaluate(
            twin, targets.models[target.name], images.test, recipe.seed, values["trials"]
        ),
    }


def _finish(values: dict[str, Any], result: dict[str, Any]) -> int:
    if values["out"] is not None:
        write_json(values["out"], result)
    health = [Check(**check) for check in result.get("health", ())]
    if values["as_json"]:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        verdicts = {result["target"]["runtime"]: result["verdicts"]}
        show(Console(), verdicts, result.get("curve"), health, result["threat"])
        for line in [*result.get("notes", ()), *_apb_lines(result.get("apb"))]:
            sys.stdout.write(line + "\n")
    return InvalidEvaluation.exit_code if any(check.status == "INVALID" for check in health) else 0


def _apb_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []

    def words(measured: dict[str, float]) -> str:
        return f"{100 * measured['value']:.2f} % {interval(measured)}"

    lines = [
        f"benchmark: {found['model_key']}, {100 * found['sparsity']:.2f} % of weights are zero",
        f"  AutoAttack at eps {found['eps']}: {words(found['autoattack'])}, clean "
        f"{words(found['clean'])}, {found['images']} images",
    ]
    fmn = found["ho_fmn"]
    if fmn is None:
        return [*lines, "  HO-FMN: the test set ends before the benchmark's images 2048-2175"]
    words_of = f"{words(fmn['robust'])}, {fmn['images']} images, {fmn['trials']} trials"
    return [*lines, f"  HO-FMN at eps 8/255: {words_of}"]
