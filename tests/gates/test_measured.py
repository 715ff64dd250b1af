"""How the two networks are timed here, and what parity is told of what ships."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.backends.deployed_form import DeployedForm
from kdcompile.config.gates import Gates
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates import measure
from kdcompile.gates.context import Origin, Outcomes, Parity, Prediction
from kdcompile.gates.deployed import Deployed
from kdcompile.latency.environment import fingerprint_id
from kdcompile.tasks.agreement import LIMIT_DB
from kdcompile.tasks.metric import GAMES, MAE
from kdcompile.tasks.segmentation import MIOU
from kdcompile.tasks.task import find_task

SPEED = {"speedup": {"min": 2.0}}
PROFILE = [[1, 3, 2, 2], [1, 3, 4, 6], [1, 3, 8, 8]]
HOST = Preprocess(3, (0.5,) * 3, (0.5,) * 3, (2, 2), (8, 8))


@pytest.fixture
def timed(monkeypatch):
    """`timed(target, precision, gates, others)`: the latency, and how often it was tried."""

    def make(target, precision="int8", gates=SPEED, others=0.0):
        seen = {}

        def quietest(once, tries):
            once()
            seen["tries"] = tries
            return SimpleNamespace(ms={"teacher": np.ones(6), "student": np.ones(6)}, repeats=3), (
                others
            )

        def measured(pair, settings):
            seen["settings"] = settings
            for run in pair.values():
                run()

        def network(name):
            return lambda image: seen.setdefault("ran", []).append((name, image.shape))

        monkeypatch.setattr(measure, "quietest", quietest)
        monkeypatch.setattr(measure, "measure_latency", measured)
        step = SimpleNamespace(
            inputs={"compile": SimpleNamespace(json=lambda name: {"precision": precision})},
            spec=SimpleNamespace(
                seed=0, gates=Gates.model_validate(gates), export=SimpleNamespace(profile=PROFILE)
            ),
        )
        form = DeployedForm(HOST, Path())
        runners = {name: network(name) for name in ("teacher", "student_fp32", "student_int8")}
        latency = measure._time(step, targets.load(target), runners, "student_int8", form)
        return latency, seen

    return make


def test_the_chosen_precision_is_timed_where_this_machine_is_the_target(timed):
    latency, seen = timed("cpu")
    assert seen["ran"] == [("teacher", (1, 3, 4, 6)), ("student_int8", (1, 3, 4, 6))]
    assert (latency.precision, latency.times.repeats) == ("int8", 3)
    assert latency.mode == (
        "ONNX Runtime CPU, 1x3x4x6, 2 threads, alternating, the fastest call of each block"
    )
    settings = seen["settings"]
    assert (settings.blocks, settings.warmup, settings.seconds) == (30, 3, 30.0)


@pytest.mark.parametrize(
    ("precision", "ran", "told"),
    [("int8", "student_fp32", True), ("fp32", "student_int8", False)],
)
def test_for_another_device_both_are_timed_in_fp32(timed, precision, ran, told):
    latency, seen = timed("jetson", precision)
    assert [name for name, _ in seen["ran"]] == ["teacher", ran]
    assert latency.precision == "fp32"
    assert ("both in fp32; int8 is chosen" in latency.mode) == told


@pytest.mark.parametrize(
    ("target", "gates", "tries"),
    [
        ("cpu", SPEED, measure.TRIES),
        ("cpu", {}, 1),
        ("cpu", {"speedup": {"min": 2.0, "evidence": "predicted"}}, 1),
        ("jetson", SPEED, 1),
    ],
)
def test_only_a_measurement_that_decides_is_repeated(timed, target, gates, tries):
    assert measure.TRIES > 1
    assert timed(target, gates=gates)[1]["tries"] == tries


def test_a_busy_machine_is_told(timed):
    assert "other processes" not in timed("cpu", others=measure.MOST)[0].mode
    latency, _ = timed("cpu", others=measure.MOST + 0.1)
    assert "other processes took" in latency.mode
    assert latency.others == measure.MOST + 0.1


@pytest.mark.parametrize(
    ("precision", "shipped", "name"),
    [
        ("fp16", "student", "student_fp16"),
        ("fp16", "student_fp32", "student_fp16"),
        ("fp32", "student_fp32", "student"),
        ("int8", "student_int8", None),
    ],
)
@pytest.mark.parametrize(
    ("known", "sqnr"), [(None, -LIMIT_DB), (30.0, 30.0), (LIMIT_DB + 9.0, LIMIT_DB)]
)
def test_parity_of_what_is_computed_in_fp32_here_is_that_of_the_export(
    precision, shipped, name, known, sqnr
):
    rows = {name: {"sqnr_db": known, "max_rel_error": 0.5, "n": 4}}
    inputs = {
        "compile": SimpleNamespace(json=lambda file: {"precision": precision}),
        "export": SimpleNamespace(json=lambda file: rows),
    }
    own = Parity(41.0, 0.1, 9, "int8 against fp32")
    found = measure._parity(inputs, SimpleNamespace(parity=own), shipped, False)
    if name is None:
        assert found is own
        return
    assert (found.sqnr_db, found.n) == (sqnr, 4)
    assert found.max_rel_error == (1e30 if known is None else 0.5)
    assert ("overflows" in found.mode) == (known is None)


@pytest.mark.parametrize(("own", "known", "sqnr"), [(41.0, 50.0, 41.0), (60.0, 50.0, 50.0)])
def test_parity_of_a_file_with_its_preprocessing_is_the_worse_of_two(own, known, sqnr):
    rows = {"student_fp16": {"sqnr_db": known, "max_rel_error": 0.5, "n": 4}}
    inputs = {
        "compile": SimpleNamespace(json=lambda file: {"precision": "fp16"}),
        "export": SimpleNamespace(json=lambda file: rows),
    }
    found = SimpleNamespace(parity=Parity(own, 0.1, 9, "as shipped"))
    assert measure._parity(inputs, found, "student", True).sqnr_db == sqnr


@pytest.mark.parametrize(
    ("sha", "name"), [("a", "student_fp32"), ("b", "student_int8"), ("c", "student")]
)
def test_the_shipped_network_is_known_by_its_hash(sha, name):
    stage = {
        "export": {"student.onnx": "a"}, "calibrate": {"student_int8.onnx": "b"},
        "compile": {"model.onnx": sha},
    }  # fmt: skip
    inputs = {
        key: SimpleNamespace(files=files, file=lambda name: name) for key, files in stage.items()
    }
    found, without = (measure.networks(inputs, *more) for more in ((), (False,)))
    assert list(without) == ["teacher", "student_fp32", "student_int8"]
    assert set(found) == {*without, name}


def test_an_engine_is_timed_in_thirty_turns_of_a_minute_at_most(monkeypatch):
    asked = {}

    def judged_pace(place, names, image, **limits):
        asked.update(limits, shape=image.shape)
        raise InterruptedError

    monkeypatch.setattr(engine, "judged_pace", judged_pace)
    board = SimpleNamespace(label="there")
    with pytest.raises(InterruptedError):
        Deployed(None, board, {}, 0).times(np.zeros((1, 3, 4, 6), np.float32))
    assert asked == {"turns": 30, "seconds": 60.0, "shape": (1, 3, 4, 6)}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("target", "as_written"), [("cpu", False), ("jetson", True)])
def test_what_ran_at_a_board_is_told_and_what_ran_here(monkeypatch, there, target, as_written):
    board = SimpleNamespace(student="engine", times=lambda image: (image.shape, ()), origin="there")
    opened, runs = [], {}

    def open_session(path, threads, as_written):
        opened.append((path, as_written))
        return SimpleNamespace(name="onnxruntime", version="1")

    def evaluate(runners, pair, *rest):
        runs.update(runners, pair=pair)
        return SimpleNamespace(predicted={}, maps={}, difficulty=np.zeros(1), parity="compared")

    for name, value in {
        "open_session": open_session, "evaluate": evaluate, "_time": lambda *values: "timed",
        "_parity": lambda *values: "known", "example_arrays": lambda *values: {},
        "deployed": lambda step: nullcontext(board if there else None),
    }.items():  # fmt: skip
        monkeypatch.setattr(measure, name, value)
    stage = {"export": {"student.onnx": "a"}, "calibrate": {"student_int8.onnx": "b"},
             "compile": {"model.onnx": "c"}}  # fmt: skip
    step = SimpleNamespace(
        board=board if there else None,
        spec=SimpleNamespace(seed=0, export=SimpleNamespace(profile=PROFILE, preprocess="host")),
        inputs={
            key: SimpleNamespace(files=files, file=lambda name: name)
            for key, files in stage.items()
        },
    )
    task = SimpleNamespace(is_dense=False, takes_rows=False, records=False)
    found = measure.measure(step, targets.load(target), ["photo"], (HOST, HOST), task, None)
    assert found.latency == ((1, 3, 4, 6) if there else "timed")
    assert (found.parity, found.deployed == "there") == (
        ("compared", True) if there else ("known", False)
    )
    assert runs["pair"] == ("student_fp32", "student")
    assert (runs["student"] == "engine") == there
    assert ("model.onnx", as_written) in opened or there
    assert {written for _, written in opened} == {as_written}
    assert (found.host.machine, found.host.evidence, found.earlier) == (
        fingerprint_id(), "host", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "evidence", "ran"),
    [("cpu", "host", True), ("intel-cpu", "host", False), ("intel-cpu", "device", True),
     ("jetson", "host", False), ("jetson", "device", True)],
)  # fmt: skip
def test_a_cpu_target_without_a_vendor_is_this_machine(make_context, target, evidence, ran):
    context = make_context("counting", [1.0], [1.0], [1.0])
    deployed = Origin("there", "tensorrt", "10", evidence)
    found = replace(context, target=targets.load(target), deployed=deployed)
    assert found.ran_on_target == ran
    assert found.measurement("size", 1.0, "MB").machine == "there"
    own = found.measurement("size", 1.0, "MB", origin=context.host, precision="fp16")
    assert (own.machine, own.precision) == ("here", "fp16")
    assert found.latency.others == 0.0
    assert not Prediction(1.0, 1.0, 1.5, False, (1.0, 1.0)).validated


def test_errors_of_maps_are_known_of_networks_that_have_maps():
    one, task = np.ones(2), find_task("counting")
    maps = {"student": np.arange(6.0).reshape(2, 3)}
    found = Outcomes(("a", "b"), one, one, one, one, 3 * one, 3, maps=maps)
    assert [found.knows("student", m) for m in (MAE, GAMES[0])] == [True, True]
    assert [found.knows("teacher", m) for m in (MAE, GAMES[0])] == [True, False]
    assert not found.knows("previous", MAE)
    assert found.errors(task, "student", GAMES[1]).tolist() == [1.0, 4.0]
    assert np.abs(found.errors(task, "student", MAE)).tolist() == [2.0, 2.0]
    assert found.scope == "2 of 3 test images"
    assert Outcomes(("a", "b"), one, one, one, one, one, 2).scope == "2 test images"


def test_errors_with_records_are_known_of_networks_that_have_records():
    one = np.ones(2)
    records = np.ones((2, 3))
    found = Outcomes(("a", "b"), one, one, one, one, records, 2)
    assert (found.knows("student", MIOU), found.knows("teacher", MIOU)) == (True, False)
