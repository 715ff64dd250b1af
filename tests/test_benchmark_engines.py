"""benchmarks/engines.py with ONNX Runtime for a board, on photos of 16x16 pixels."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from tiny_training import SPEC, network, photos

from kdcompile.calib.sensitivity import Outcome
from kdcompile.data.preprocess import Preprocess
from kdcompile.remote.agent.worker import Worker
from kdcompile.tasks.task import find_task

ROOT = Path(__file__).parents[1]
MODEL = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1),
    )
"""
SPLITS = {"train": 8, "val": 4, "test": 16}
OPEN = ["gates.accuracy.max_increase=100000%", "gates.accuracy.margin=100000%",
        "gates.parity.min_sqnr_db=-200"]  # fmt: skip


@pytest.fixture(scope="module")
def scripts():
    """The scripts by name, `engines` with `main` among them."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        path = ROOT / "benchmarks" / "engines.py"
        spec = importlib.util.spec_from_file_location("engines_benchmark", path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        names = ("build", "files", "measure", "networks", "report", "run")
        parts = {name: sys.modules[f"engines_{name}"] for name in names}
        yield SimpleNamespace(engines=script, **parts)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if name.startswith(("engines_", "distill_")) or name == "kernel_rows":
                del sys.modules[name]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """`task(out, *more)`: arguments for a run with results in a file of that name."""
    folder = tmp_path_factory.mktemp("tiny")
    for seed, (split, number) in enumerate(SPLITS.items()):
        names = []
        for photo in photos(number, seed):
            names.append(f"{split}_{photo.name}.png")
            Image.fromarray(photo.array[..., 0]).save(folder / names[-1])
            line = json.dumps({"image": names[-1], "points": photo.points.tolist()})
            with (folder / "annotations.jsonl").open("a") as file:
                file.write(line + "\n")
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    (folder / "model.py").write_text(MODEL)
    (folder / "kdcompile.toml").write_text(SPEC)
    # a bright square is its count: a network that is worth keeping without any training
    weights = {name: 0.01 * value for name, value in network(32, 0).state_dict().items()}
    weights["0.weight"][0, 0, 1, 1] = weights["3.weight"][0, 0, 1, 1] = 1.0
    weights["5.weight"][0, 0] = 0.25  # a square of 3 pixels is pooled to 2x2
    save_file(weights, folder / "w.safetensors")

    def arguments(out, *more):
        sets = ["distill.steps=0", "quantize.images=4", "student.crops=2", *OPEN]
        return [
            *more, "--backend", "onnxruntime", "--spec", str(folder), "--images", "4",
            "--photos", "3", "--turns", "6", "--iterations", "3", "--work", str(folder / "work"),
            "--out", str(folder / out), *(a for s in sets for a in ("--set", s)),
        ]  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def measured(scripts, task):
    """The record of a run."""
    arguments = task("engines.json")
    assert scripts.engines.main(arguments) == 0
    [record] = scripts.files.read(scripts.engines.parsed(arguments).out).values()
    return record


def test_every_engine_is_judged_on_every_test_photo(measured):
    built = {n: e for n, e in measured["engines"].items() if "refused" not in e}
    expected = {f"{who} {p}" for who in ("teacher", "student") for p in ("fp32", "fp16", "int8")}
    assert expected <= set(built)
    assert set(measured["latency"]["engines"]) == set(built)
    for name, found in built.items():
        assert found["accuracy"]["n"] == len(found["accuracy"]["errors"]) == SPLITS["test"]
        mae = np.abs(found["accuracy"]["errors"]).mean()
        assert found["accuracy"]["mae"] == pytest.approx(mae, abs=1e-3)
        assert found["engine"]["bytes"] > 0
        assert found["parity_fp32"]["n"] == 3
        assert found["parity_same_file"]["sqnr_db"] > 60, name


def test_only_int8_networks_have_int8_macs_and_an_error_against_fp32(measured):
    for name, found in measured["engines"].items():
        if "refused" in found:
            continue
        quantised = name.split()[1] in ("int8", "mixed")
        assert (found["int8_macs_share"] > 0.5) == quantised
        assert (found["parity_fp32"]["sqnr_db"] < 60) == quantised


def test_what_cannot_be_built_has_its_reason(measured):
    assert "does not build it" in measured["engines"]["student bf16"]["refused"]


def test_every_mode_of_the_place_is_timed(measured):
    for found in measured["latency"]["engines"].values():
        assert set(found) == {"device", "end_to_end", "ratios"}
        assert found["device"]["n"] == 6 * 3
        assert len(found["device"]["turns"]) == 6
        assert (
            0 < found["device"]["min_ms"] <= found["device"]["p50_ms"] <= found["device"]["p90_ms"]
        )
        assert found["device"]["clock"] == "wall"
        assert found["ratios"] == {}  # ONNX Runtime enqueues nothing


def test_a_second_call_measures_nothing_again(scripts, task, measured, monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("measured again")

    for name in ("judge", "time_all"):
        monkeypatch.setattr(scripts.run, name, refuse)
    assert scripts.engines.main(task("engines.json")) == 0
    printed = capsys.readouterr().out
    for title in ("Conditions", "Engines", "Latency in ms", "Not built", "What follows"):
        assert f"### {title}" in printed
    assert "`auto` chose" in printed


def test_it_stops_in_time_and_says_what_remains(scripts, task, measured, capsys):
    arguments = task("other.json", "measure", "--budget-minutes", "0")
    assert scripts.engines.main(arguments) == 5
    assert "remains: teacher, calibration and what follows it" in capsys.readouterr().out


def test_an_error_of_the_user_is_told(scripts, task, capsys):
    arguments = [*task("other.json", "measure"), "--via", "python:/nowhere/python"]
    assert scripts.engines.main(arguments) == 1
    assert "error[via-python]" in capsys.readouterr().err


def test_a_part_that_there_is_not_is_a_usage_error(scripts, capsys):
    with pytest.raises(SystemExit) as stopped:
        scripts.engines.parsed(["measures"])
    assert stopped.value.code == 2
    assert "no part measures" in capsys.readouterr().err


@pytest.mark.soak
def test_builds_have_their_exit_codes_and_gates(scripts, task, measured, capsys):
    arguments = task("engines.json", "build", "report", "--speedups", "0.001", "1000")
    assert scripts.engines.main(arguments) == 0
    [record] = scripts.files.read(scripts.engines.parsed(arguments).out).values()
    passed, failed = record["builds"]["0.001"], record["builds"]["1000"]
    assert (passed["exit_code"], failed["exit_code"]) == (0, 3)
    speedup = {gate["name"]: gate for gate in failed["gates"]}["speedup"]
    assert (speedup["verdict"], speedup["evidence"]) == ("failed", "predicted")
    assert passed["choice"]["precision"] == record["choice"]["precision"]
    printed = capsys.readouterr().out
    assert "`gates.speedup.min=0.001`: exit 0" in printed
    assert "`gates.speedup.min=1000`: exit 3" in printed


class PlayedPlace:
    """Answers `time` with what each kind takes, and notes the order of the questions."""

    def __init__(self, takes):
        self.takes, self.asked, self.loaded = takes, [], {}
        self.about = {"modes": ["device", "graph", "end_to_end", "enqueue"]}

    def call(self, op, path, name, graph=False):
        assert op == "load"
        self.loaded[name] = path, graph

    def time(self, arrays, name, mode, iterations, warmup, samples):
        self.asked.append((name, mode))
        replays = self.loaded[name][1]
        ms = self.takes["enqueue_graph" if replays else mode]
        clock = "end_to_end" if mode == "end_to_end" else "device"
        return {"samples": {clock: [ms] * iterations}}


TAKES = {"graph": 1.02, "enqueue": 1.0, "device": 1.2, "enqueue_graph": 0.9, "end_to_end": 2.0}


def timed(scripts, **takes):
    place = PlayedPlace({**TAKES, **takes})
    image = np.zeros((1, 1, 2, 2), np.float32)
    return place, scripts.measure.time_all(place, {"a fp16": "there"}, image, 6, 4)["a fp16"]


def test_the_runner_is_held_against_the_same_engine_enqueued(scripts):
    place, found = timed(scripts)
    assert place.loaded == {"a fp16": ("there", False), "a fp16@graph": ("there", True)}
    assert found["ratios"]["graph/enqueue"] == pytest.approx([1.02] * 3)
    assert found["ratios"]["device/enqueue"] == pytest.approx([1.2] * 3)
    assert found["ratios"]["graph/enqueue_graph"] == pytest.approx([1.02 / 0.9] * 3, abs=1e-4)
    assert {kind: found[kind]["p50_ms"] for kind in TAKES} == TAKES
    assert scripts.report.adds_nothing(found["ratios"])
    assert not scripts.report.adds_nothing(timed(scripts, graph=1.04)[1]["ratios"])


def test_turns_go_forwards_and_backwards(scripts):
    asked = timed(scripts)[0].asked
    assert len(asked) == 7 * 5
    assert asked[:5] == asked[5:10][::-1] == asked[10:15]
    assert len(set(asked[:5])) == 5


def test_a_share_in_int8_is_the_engines_own(scripts, tmp_path):
    weights = {name: np.zeros(size, np.float32) for name, size in
               (("v", (2, 1, 1, 1)), ("w", (6, 2, 1, 1)))}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["between"], name="first"),
        helper.make_node("Conv", ["between", "w"], ["density"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("density", TensorProto.FLOAT, [1, 6, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    layers = [
        {"precision": "int8", "onnx": ["second"]},
        {"precision": "fp16", "onnx": ["first"]},
        {"precision": "int8", "onnx": None},
    ]
    share = scripts.measure.int8_share
    assert share(path, path, [1, 1, 4, 4], layers) == (12 / 14, "engine")
    assert share(path, path, [1, 1, 4, 4], None) == (0.0, "network")


def test_outputs_that_are_not_finite_are_a_finding(scripts):
    some = photos(2, 0)
    prepare = Preprocess(1, (0.5,), (0.5,), (16, 16), (16, 16))
    bad = np.full((1, 1, 8, 8), np.nan, np.float32)
    found, outputs = scripts.measure.judge(lambda _: bad, some, find_task("counting"), prepare)
    assert found == {"n": 2, "nonfinite": 2}
    alike = scripts.measure.parity([np.ones_like(bad)] * 2, list(outputs.values()))
    assert alike == {"n": 2, "finite": False}


def test_an_evaluation_is_made_once(scripts, tmp_path):
    made = []

    def make():
        return lambda model: made.append(model) or Outcome(1.5, 40.0)

    graph = helper.make_graph([], "none", [], [])
    model = helper.make_model(graph)
    for _ in range(2):
        assert scripts.networks.Remembered(tmp_path, make)(model) == Outcome(1.5, 40.0)
    assert len(made) == 1


def engine(errors, share):
    return {"accuracy": {"errors": errors}, "int8_macs_share": share}


def record(int8_ms, errors, precision):
    latency = {f"student {p}": {"graph": {"p50_ms": ms}, "ratios": {}}
               for p, ms in (("fp32", 3.0), ("fp16", 1.0), ("int8", int8_ms))}  # fmt: skip
    engines = {"student fp32": engine([10.0, 10.0], 0.0), "student fp16": engine([10.0, 10.0], 0.0),
               "student int8": engine(errors, 0.9)}  # fmt: skip
    choice = {"precision": precision, "basis": "measured", "why": "it is"}
    return {"latency": {"engines": latency}, "engines": engines, "choice": choice}


@pytest.mark.parametrize(
    ("int8_ms", "errors", "precision", "expected"),
    [
        (0.8, [10.1, 10.0], "int8", ["(at most +1 %: met), 0.800", "beat fp16: student int8"]),
        (0.8, [10.3, 10.0], "int8", ["(at most +1 %: NOT met)", "without that: NOT met"]),
        (1.2, [10.0, 10.0], "fp16", ["(at most +1 %: met), 1.200", "without that: met"]),
        (1.2, [10.0, 10.0], "int8", ["without that: NOT met"]),
        (1.2, [10.0, 10.0], "fp32", ["without that: NOT met"]),
    ],
)
def test_int8_must_pay_and_keep_or_fp16_be_chosen(scripts, int8_ms, errors, precision, expected):
    whole = record(int8_ms, errors, precision)
    text = "\n".join(scripts.report.findings(whole, whole["engines"]))
    for words in expected:
        assert words in text


def test_the_modes_are_the_workers(scripts):
    played = ("device", "graph", "end_to_end", "enqueue")
    assert scripts.measure.kinds_of(Worker("onnxruntime").backend.modes) == ["device", "end_to_end"]
    assert scripts.measure.kinds_of(played) == list(scripts.measure.KINDS)
