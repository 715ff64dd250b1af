"""Tracker `mlflow`: a run of an MLflow server, data base or folder."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from kdcompile.core.optional import need
from kdcompile.core.plugins import register

EXPERIMENT = "kdcompile"  # unless $MLFLOW_EXPERIMENT_NAME names another
LONGEST = 250  # characters of a parameter: the least limit of the servers
MOST = 100  # parameters of one request
# A server that is down is waited for this long, not for MLflow's own many minutes, unless the
# environment says otherwise.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


@register("trackers", "mlflow")
class MlflowTracker:
    """A run of the experiment `kdcompile`: parameters, metrics, artifacts, and tags of gates."""

    def __init__(self, where: str = "") -> None:
        """`where`: a tracking URI or folder; by default MLflow's own, as $MLFLOW_TRACKING_URI.

        Raises:
            ToolMissingError: MLflow is not installed.
        """
        self._mlflow = need("mlflow", "mlflow", "the tracker mlflow")
        self._where, self._run = where or None, ""

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        """Make a run; the settings are its parameters."""
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        self._client = self._mlflow.MlflowClient(tracking_uri=self._where)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(title)
        number = self._client.create_experiment(title) if found is None else found.experiment_id
        self._run = self._client.create_run(number, run_name=name).info.run_id
        parameter = self._mlflow.entities.Param
        given = [parameter(_name(key), value[:LONGEST]) for key, value in settings.items()]
        for first in range(0, len(given), MOST):
            self._client.log_batch(self._run, params=given[first : first + MOST])

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """All values in one request; results have step 0."""
        now, metric = int(time.time() * 1e3), self._mlflow.entities.Metric
        rows = [metric(_name(key), value, now, step or 0) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=rows)

    def artifact(self, path: Path) -> None:
        """Send a copy of the file."""
        self._client.log_artifact(self._run, str(path))

    def finish(self, succeeded: bool, facts: Mapping[str, str]) -> None:
        """Set the tags and the state of the run, `FINISHED` or `FAILED`."""
        for key, value in facts.items():
            self._client.set_tag(self._run, _name(key), value)
        self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED")


def _name(key: str) -> str:
    """A name of the characters that MLflow allows."""
    return re.sub(r"[^\w./ -]", "_", key)
