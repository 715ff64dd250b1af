"""Tracker `mlflow` against a server on loopback, read back through MLflow's own client."""

import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from tracked_run import FILES, GATE, LOSSES, MAES, SIZE, track

from kdcompile.core.optional import NO_TELEMETRY, need
from kdcompile.core.progress import Metric
from kdcompile.trackers.tracking import Tracking

pytest.importorskip("flask", reason="no MLflow server: pip install mlflow")
mlflow = pytest.importorskip("mlflow", reason="pip install 'kdcompile[mlflow]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of the library


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server with an empty data base."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/runs.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    address, environment = f"http://127.0.0.1:{port}", os.environ | NO_TELEMETRY
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        ) as process,
    ):
        while not answers(address):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield address
        os.killpg(process.pid, 15)


def answers(address):
    try:
        return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200
    except OSError:
        return False


def test_a_run_is_read_back(server, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    with caplog.at_level(logging.WARNING, "kdcompile"):
        track(f"mlflow:{server}", tmp_path / "bundle", caplog)
    assert capsys.readouterr().out == "", "standard output is the report's"
    client = mlflow.MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("kdcompile")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("net-cpu", "FINISHED")
    assert run.data.params == {"distill.lr": "0.5", "name": "x" * 250}
    for name, values in (("train/loss", LOSSES), ("val/mae", MAES)):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(one.step, one.value) for one in history] == list(enumerate(values, 1))
    assert run.data.metrics[SIZE] == 0.25
    assert run.data.tags["verdict"] == "failed: accuracy"
    assert run.data.tags["gate.accuracy"] == GATE
    for name, text in FILES.items():
        path = client.download_artifacts(run.info.run_id, name, str(tmp_path))
        with open(path) as stream:
            assert stream.read() == text


def test_a_server_that_is_down_is_one_warning(caplog, monkeypatch):
    for variable, value in (("TIMEOUT", "1"), ("MAX_RETRIES", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", value)
    with socket.socket() as taken, caplog.at_level(logging.WARNING, "kdcompile"):
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        with Tracking(f"mlflow:http://127.0.0.1:{taken.getsockname()[1]}", None) as tracking:
            tracking.start("net-cpu", {})
            tracking.note(Metric("distill", 1, "loss", 1.0))
    (message,) = [m for m in caplog.messages if m.startswith("tracking: ")]
    assert message.startswith("tracking: mlflow failed and is left out of the rest of this build")


def test_its_own_usage_data_is_off():
    need("mlflow", "mlflow", "this test")
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
