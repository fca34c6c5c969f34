"""A run in MLflow: where MLFLOW_TRACKING_URI says, else in files below RUNS/mlflow.

Files, because the small package has no database. MLflow calls them maintained and no longer
developed, and wants to hear that one knows. The run's identity lies in RUN/mlflow.id, so that it
goes on in the same one.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

# MLflow reports its use to its makers unless told not to, and reads this when it is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
# By default a server that is gone would hold training up for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from advprune.files import write
from pipeline.files import make_folder

FOLDER = "mlflow"
EXPERIMENT = "advprune"
IDENTITY = "mlflow.id"
_PARAMETERS_AT_ONCE = 100  # that MLflow takes


class Record:
    """See `pipeline.tracking.Tracker`."""

    def begin(self, runs: Path, run: str, recipe: Mapping[str, str]) -> None:
        where = os.environ.get("MLFLOW_TRACKING_URI") or (runs / FOLDER).resolve().as_uri()
        self._client = MlflowClient(where)
        identity = runs / run / IDENTITY
        self._id = self._known(identity)
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        place = experiment.experiment_id if experiment else None
        made = self._client.create_run(
            place or self._client.create_experiment(EXPERIMENT), run_name=run
        )
        self._id = made.info.run_id
        parameters = [Param(key, value) for key, value in recipe.items()]
        for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            some = parameters[first : first + _PARAMETERS_AT_ONCE]
            self._client.log_batch(self._id, params=some)
        make_folder(identity.parent)
        write(identity, self._id.encode() + b"\n")

    def steps(self, name: str) -> set[int]:
        return {metric.step for metric in self._client.get_metric_history(self._id, name)}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def verdict(self, word: str, report: Path) -> None:
        self._client.set_tag(self._id, "verdict", word)
        self._client.log_artifact(self._id, str(report))

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, status)

    def _known(self, identity: Path) -> str:
        """The run to go on with; "" where there is none, or the server has none of that name."""
        if not identity.exists():
            return ""
        name = identity.read_text().strip()
        try:
            return self._client.get_run(name).info.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
