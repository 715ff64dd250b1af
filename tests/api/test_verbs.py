"""The verbs: their types, their events, and that they work beside packages of the same name."""

import errno
import inspect
import subprocess
import sys
from dataclasses import is_dataclass

import pytest
from written_build import write_folder, write_stage

import kdcompile
from kdcompile import api
from kdcompile.core.errors import KDError
from kdcompile.core.progress import Metric, StageFinished, StageHit, StageStarted, StepDone, counted
from kdcompile.distill.state import TrainingProgress
from kdcompile.passes.stages import Stage

OBJECTS = """
import sys, numpy as np, torch, kdcompile
from torch import nn
rng = np.random.default_rng(0)
images = [(rng.integers(0, 99, (16, 16, 1), np.uint8) + n % 2 * 150, n % 2) for n in range(12)]
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
nn.init.constant_(net[0].weight, 1 / 9)  # the mean brightness, and whether it is above a half
net[3].weight.data[:] = torch.tensor([[-1.0], [1.0]])
net[0].bias.data[:], net[3].bias.data[:] = 0, torch.tensor([2.0, -2.0])
inputs = dict(teacher=net, data={"train": images[:6], "val": images[6:9], "test": images[9:]},
              task="classification", target="cpu")
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with a spec whose stages only write the files that others take."""
    write_folder(tmp_path)
    monkeypatch.setattr(Stage, "load", lambda self: write_stage)
    monkeypatch.setattr("kdcompile.passes.refusals.refuse_settings", lambda *_: None)
    return tmp_path


class Events(list):
    """Without those of reading the data."""

    def append(self, event):
        if event.stage != "data":
            super().append(event)


def test_every_verb_is_a_typed_function_that_returns_a_dataclass():
    assert set(kdcompile.__all__) <= set(dir(kdcompile))
    for name in kdcompile.__all__:
        verb = getattr(api, name)
        hints = inspect.get_annotations(verb)
        assert verb.__doc__
        assert set(inspect.signature(verb).parameters) <= set(hints), name
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.latency.benchmark import Benchmark
    from kdcompile.passes.show import Planned

    kinds = {"Planned": Planned, "Bundle": Bundle, "Benchmark": Benchmark, "Built": api.Built,
             "Artifact": api.Artifact, "Report": api.Report}  # fmt: skip
    for name in kdcompile.__all__:
        result = inspect.get_annotations(getattr(api, name))["return"]
        found = kinds[result if isinstance(result, str) else result.__name__]
        assert is_dataclass(found), name
        assert found.__dataclass_params__.frozen, name


def test_a_package_of_a_verbs_name_is_called_as_the_verb(written):
    import kdcompile.distill.phase

    assert kdcompile.distill.phase.StageRun
    made = kdcompile.distill(written)
    assert (made.stage, made) == ("distill", api.run_stage("distill", written))
    for name in ("search", "export", "calibrate"):
        assert getattr(kdcompile, name)(written).stage == name
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        kdcompile.destill  # noqa: B018


def test_stages_are_events(written):
    events = Events()
    made = api.run_stage("calibrate", written, on_progress=events.append)
    order = ["teacher", "search", "distill", "export", "calibrate"]
    assert [e.stage for e in events if isinstance(e, StageStarted)] == order
    assert [e.stage for e in events if isinstance(e, StageFinished)] == order
    assert events[-1].key == made.key
    assert events[-2] == StageStarted("calibrate", ("never made here",))
    events.clear()
    assert api.calibrate(written, on_progress=events.append) == made
    assert [type(event) for event in events] == [StageHit] * len(order)
    assert events[-1] == StageHit("calibrate", made.key)
    events.clear()
    api.run_stage("calibrate", written, on_progress=events.append, distill={"lr": 0.5})
    assert [e.stage for e in events if isinstance(e, StageStarted)] == order[2:]
    assert StageHit("search", api.search(written).key) in events


def test_steps_and_metrics_are_events(written, monkeypatch):
    def run(step, store, target):
        list(counted("ab", 2, step.stage, "letters"))
        with TrainingProgress(4, 0, "mae") as shown:
            shown.show_row(3, {"stage": "distill", "step": 3, "loss": 0.5, "val_mae": 2.0})
        with TrainingProgress(4, 0, "mae", quiet=True) as silent:
            silent.show_row(4, {"stage": "distill", "step": 4, "loss": 0.25})
        return write_stage(step, store, target)

    monkeypatch.setattr(Stage, "load", lambda self: run)
    events = Events()
    api.run_stage("teacher", written, on_progress=events.append)
    assert events[1:-1] == [
        StepDone("teacher", 1, 2, "letters"), StepDone("teacher", 2, 2, "letters"),
        StepDone("distill", 3, 4, "steps"),
        Metric("distill", 3, "loss", 0.5), Metric("distill", 3, "val_mae", 2.0),
    ]  # fmt: skip


def test_a_callback_that_fails_is_an_error_and_the_finished_stages_stay(written):
    def stop(event):
        if event == StageStarted("search", ("never made here",)):
            raise ZeroDivisionError

    with pytest.raises(KDError, match="ZeroDivisionError") as caught:
        api.run_stage("distill", written, on_progress=stop)
    assert caught.value.code == "callback-failed"
    events = Events()
    api.run_stage("distill", written, on_progress=events.append)
    assert isinstance(events[0], StageHit)


def test_an_interrupted_build_of_objects_goes_on_in_another_process(tmp_path):
    """As from a notebook whose kernel was restarted: the same cells run again."""
    stop = "def stop(event):\n    if getattr(event, 'seconds', None): sys.exit(event.stage)\n"
    first = OBJECTS + stop + "kdcompile.build(**inputs, on_progress=stop)"
    then = OBJECTS + "print(*kdcompile.api.planned(None, inputs).found())"
    for code, out, err in ((first, "", "SystemExit: teacher"), (then, "teacher\n", "")):
        found = subprocess.run(
            [sys.executable, "-"], input=code, cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert (found.stdout, err in found.stderr) == (out, True), found.stderr


def test_a_disk_that_cannot_be_written_is_an_error_with_a_fix(written, monkeypatch):
    def full(step, store, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Stage, "load", lambda self: full)
    with pytest.raises(KDError) as caught:
        api.run_stage("teacher", written)
    assert caught.value.code == "disk-full"


def test_arguments_of_bench_that_do_not_go_together(tmp_path):
    for named in ({"reference": "a.onnx"}, {"allow": ["driver"]}, {"limit": 5.0}, {"runs": 4}):
        with pytest.raises(KDError) as caught:
            kdcompile.bench(tmp_path / "net.onnx", **named)
        assert caught.value.code == "bench-arguments"
