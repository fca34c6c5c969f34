"""Stage 10: what goes to the device, unless the gate said no."""

from deploy.bundle.write import SAMPLES, write_bundle
from deploy.errors import DeployError
from pipeline.files import sha256, write_json
from pipeline.recipe import Recipe
from pipeline.shipping import contents_of, demand_passed, scripts
from pipeline.stage import Context, Metrics, Stage

FOLDER = "bundle"


def stage(recipe: Recipe) -> Stage:
    def run(context: Context) -> Metrics:
        try:
            demand_passed(context)
        except DeployError as refusal:
            write_json(context.out / "skipped.json", {"reason": str(refusal)})
            return {"bundle": "none: the gate failed, so there is nothing to ship"}
        contents = contents_of(context)
        write_bundle(context.out / FOLDER, contents)
        return {"bundle": FOLDER, "models": len(contents.models)}

    brings = {name: sha256(path) for name, path in scripts().items()}
    config = {"samples": SAMPLES, "scripts": brings}
    return Stage("bundle", ("data", "export", "verify", "gate", "report"), config, run, version=2)
