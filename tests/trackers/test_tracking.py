"""A tracked build: what a tracker is given, and that one that fails changes nothing."""

import logging
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from click.testing import CliRunner
from plain_tracker import PlainTracker
from written_build import write_folder, write_stage

from kdcompile import api
from kdcompile.bundle.form import sealed
from kdcompile.cli.build import build as build_command
from kdcompile.core import plugins
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.core.files import write_json
from kdcompile.core.progress import Metric, StageFinished, reporting_to
from kdcompile.core.report import GateResult, Measurement, Report
from kdcompile.distill.state import TrainingProgress
from kdcompile.passes.stages import STAGES, Stage
from kdcompile.trackers.tracking import Tracking, flattened, results

ROWS = [
    {"stage": "distill", "step": 1, "loss": 3.0, "terms": {"hard": 2.0, "soft": 1.0}},
    {"stage": "distill", "loss": 1.0, "terms": {"hard": 0.5, "soft": 0.5}, "step": 2, "val_mae": 7},
]  # fmt: skip


def measured(name, value, evidence="host", **others):
    return Measurement(name, value, others.pop("unit", "ms"), evidence, **others)


def report():
    gate = GateResult("accuracy", "passed", "host", True, "at most 5", "2.1", "on 3 images")
    number = measured("student latency", 2.0, low=1.5, high=2.5, precision="int8")
    return Report("net", "cpu", "passed", 0, (gate,), (number,), {})


def test_a_row_of_the_training_is_one_call(tmp_path):
    tracker, seen = PlainTracker(), []
    with Tracking(tracker, seen.append) as tracking:
        tracking.start("net-cpu", {"distill": {"lr": 0.5, "crop": None}, "seed": 0})
        with reporting_to(tracking.note), TrainingProgress(2, 0, "mae") as shown:
            for row in ROWS:
                shown.show_row(row["step"], row)
        assert tracker.calls == [
            ("start", "net-cpu", {"distill.lr": "0.5", "seed": "0"}),
            ("metrics", 1, {"train/loss": 3.0, "train/loss_hard": 2.0, "train/loss_soft": 1.0}),
        ]
        tracking.note(StageFinished("distill", "0", 4.0))
        both = {"train/loss": 1.0, "train/loss_hard": 0.5, "train/loss_soft": 0.5, "val/mae": 7.0}
        assert tracker.calls[2:] == [("metrics", 2, both)]
        (tmp_path / "report.html").write_text("<p>")
        (tmp_path / "model.onnx").write_text("its networks are not sent")
        tracking.report(report(), tmp_path)
    assert tracker.calls[3:] == [
        ("metrics", None, {
            "host/student latency int8 ms": 2.0, "host/student latency int8 ms low": 1.5,
            "host/student latency int8 ms high": 2.5, "seconds/distill": 4.0,
        }),
        ("artifact", "report.html"),
        ("finish", True, {
            "verdict": "passed", "target": "cpu",
            "gate.accuracy": "passed (host): 2.1, threshold at most 5",
        }),
    ]  # fmt: skip
    assert Metric("distill", 2, "val_mae", 7.0) in seen
    assert seen[-1] == StageFinished("distill", "0", 4.0)


def test_results_have_one_name_in_every_build():
    found = results([
        measured("size", 3.0, unit="MB", precision="int8", mode="student_int8.onnx"),
        measured("student top1", 0.5, unit="1", precision="fp32", mode="3 test images"),
        measured("teacher latency", 9.0, "predicted", precision="fp32", mode="beside fp32"),
        measured("teacher latency", 8.0, "predicted", precision="fp32", mode="beside int8"),
        measured("teacher latency", 7.0, "device", precision="fp32"),
    ])  # fmt: skip
    assert found == {
        "host/size student_int8.onnx MB": 3.0, "host/student top1 fp32": 0.5,
        "predicted/teacher latency fp32 ms": 9.0, "device/teacher latency fp32 ms": 7.0,
    }  # fmt: skip


def test_settings_have_dots():
    nested = {"a": {"b": {"c": 1, "d": None}, "e": []}, "f": [1, 2], "g": False}
    assert dict(flattened(nested)) == {"a.b.c": "1", "f": "[1, 2]", "g": "False"}


@pytest.mark.parametrize("method", ["start", "metrics", "artifact", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(method, tmp_path, caplog):
    bad, good = PlainTracker(fails=method), PlainTracker()
    (tmp_path / "report.html").write_text("<p>")
    (tmp_path / "report.md").write_text("#")
    with caplog.at_level(logging.WARNING, "kdcompile"), Tracking([bad, good], None) as tracking:
        tracking.start("net-cpu", {})
        for step in (1, 2, 3):
            tracking.note(Metric("distill", step, "loss", 1.0))
        tracking.report(report(), tmp_path)
    assert caplog.messages == [
        f"tracking: PlainTracker failed and is left out of the rest of this build: {method} is down"
    ]
    names = [call[0] for call in good.calls]
    assert names == ["start", *["metrics"] * 4, "artifact", "artifact", "finish"]
    assert bad.calls == good.calls[: names.index(method)]


def test_a_build_that_fails_ends_its_run_as_failed():
    tracker, early = PlainTracker(), PlainTracker()
    with suppress(ZeroDivisionError), Tracking(tracker, None) as tracking:
        tracking.start("net-cpu", {})
        raise ZeroDivisionError
    assert tracker.calls[1:] == [("finish", False, {})]
    with pytest.raises(ZeroDivisionError), Tracking(early, None):
        raise ZeroDivisionError
    assert early.calls == [], "no run was begun"


def test_what_a_tracker_prints_is_not_standard_output(capsys):
    tracker = PlainTracker()
    tracker.start = lambda name, settings: sys.stdout.write("View run")
    with Tracking(tracker, None) as tracking:
        tracking.start("net-cpu", {})
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "View run")


def test_an_unknown_name_is_refused_before_the_work():
    with pytest.raises(KDError, match="did you mean 'mlflow'") as error:
        api.build("nowhere", track="mlfow")
    assert error.value.code == "tracker-unknown"
    assert plugins.names("trackers") == ["mlflow", "tensorboard", "wandb"]


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "wandb"])
def test_a_missing_library_is_an_error_with_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ToolMissingError) as error:
        api.build("nowhere", track=f"{name}:x")
    assert f"kdcompile[{name}]" in error.value.fix


def write_bundle(step, store, target):
    """The stages of `written_build`, whose bundle has a report."""
    if step.stage != "bundle":
        return write_stage(step, store, target)

    def build(entry):
        (entry / "report.html").write_text("<p>")
        write_json(entry / "report.json", report().to_json())
        write_json(entry / "manifest.json", sealed({"files": {}}))
        return {}

    return store.make(step.stage, step.key, build)


def test_a_build_is_the_same_with_and_without(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr(Stage, "load", lambda self: write_bundle)
    monkeypatch.setattr("kdcompile.passes.refusals.refuse_settings", lambda *_: None)
    tracker, down = PlainTracker(), PlainTracker(fails="start")
    tracked = api.build(tmp_path, out=tmp_path / "out", track=[tracker, down])
    assert len(tracked.ran) == len(STAGES)
    assert tracker.calls[0][:2] == ("start", f"{tmp_path.name}-jetson")
    assert tracker.calls[0][2]["distill.crop"] == "8"
    names = ["report.html", "report.json", "manifest.json"]
    assert [call[1] for call in tracker.calls if call[0] == "artifact"] == names
    assert tracker.calls[-1][:2] == ("finish", True)
    again = api.build(tmp_path, out=tmp_path / "out")
    assert again == replace(tracked, ran=()), "every stage is a cache hit"


def test_the_command_names_its_trackers(monkeypatch):
    given = {}

    def build(spec, **named):
        given.update(named)
        raise KDError("stop", "here")

    monkeypatch.setattr(api, "build", build)
    CliRunner().invoke(build_command, ["x", "--track", "mlflow:http://h:1", "--track", "wandb"])
    assert given["track"] == ("mlflow:http://h:1", "wandb")
