"""A small tracked run, and what a tracker is to hold after it."""

from kdcompile.core.progress import Metric
from kdcompile.core.report import GateResult, Measurement, Report
from kdcompile.trackers.tracking import Tracking

LOSSES, MAES = [3.0, 1.0], [9.0, 7.0]  # after steps 1 and 2
SIZE = "host/size student.onnx MB"
FILES = {"report.html": "<p>the report</p>", "report.md": "# the report"}
GATE = "failed (host): 7.1, threshold at most 5"
SETTINGS = {"distill": {"lr": 0.5}, "name": "x" * 300}


def track(name, folder, log):
    """Report a run of two steps to the tracker of that name, which may not warn."""
    folder.mkdir()
    for file, text in FILES.items():
        (folder / file).write_text(text)
    gate = GateResult("accuracy", "failed", "host", True, "at most 5", "7.1", "on 3 images")
    size = Measurement("size", 0.25, "MB", "host", mode="student.onnx")
    with Tracking(name, None) as tracking:
        tracking.start("net-cpu", SETTINGS)
        for step, (loss, mae) in enumerate(zip(LOSSES, MAES, strict=True), 1):
            tracking.note(Metric("distill", step, "loss", loss))
            tracking.note(Metric("distill", step, "val_mae", mae))
        report = Report("net", "cpu", "failed: accuracy", 3, (gate,), (size,), {})
        tracking.report(report, folder)
    assert log.messages == []
