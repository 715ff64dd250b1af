"""benchmarks/distill.py on photos of 16x16 pixels: its parts, its files, and how it goes on."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_training import MODEL, SPEC, network, write_photos

from kdcompile.distill import train as train_module
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.models.weights import read_weights

pytestmark = pytest.mark.usefixtures("drawn")

ROOT = Path(__file__).parents[1]
SPLITS = {"train": 8, "val": 4, "test": 5}
TRAINED = ["skt", "none"]
TERMS = ["none", "kd", "intra", "inter", "skt", "unlabelled"]
STEPS = 20


@pytest.fixture(scope="module")
def modules():
    """The scripts by name, `distill` with `main` among them."""
    names = ("arms", "files", "train", "speed", "report")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        path = ROOT / "benchmarks" / "distill.py"
        spec = importlib.util.spec_from_file_location("distill_benchmark", path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        parts = {name: sys.modules[f"distill_{name}"] for name in names}
        yield SimpleNamespace(distill=script, **parts)
        for name in names:
            del sys.modules[f"distill_{name}"]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def task(tmp_path, monkeypatch, modules):
    """`task(name, *more)`: arguments for a run with work and output folders of that name."""
    data = tmp_path / "data"
    data.mkdir()
    write_photos(data, SPLITS)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "kdcompile.toml").write_text(SPEC)
    save_file(network(32, 0).state_dict(), tmp_path / "w.safetensors")

    def planned(arm, source, folder):
        """As if STEPS and a half fitted into the arm's time, whatever that is."""
        timing = modules.train.Timing(0.0, arm.seconds / (STEPS + 0.5))
        return [timing] * len(arm.distill.stages), 0.0

    monkeypatch.setattr(modules.train, "timings", planned)

    def arguments(name, *more):
        sets = ["distill.batch=2", "distill.crop=16", "distill.evaluations=2", "student.crops=2"]
        return [
            *more, "--data", str(data), "--teacher", str(tmp_path / "w.safetensors"),
            "--spec", str(tmp_path / "kdcompile.toml"), "--work", str(tmp_path / name / "work"),
            "--out", str(tmp_path / name / "out"), "--seeds", "0", "--steps", "2",
            "--rounds", "2", "--round-steps", "2", *(a for s in sets for a in ("--set", s)),
        ]  # fmt: skip

    return arguments


class Stops:
    """A clock that is over after a few looks, as if calls were short."""

    most = 8

    def __init__(self, minutes):
        self.looks = 0

    def is_over(self, ahead_s=0.0):
        self.looks += 1
        return self.looks > self.most


def _rows(out):
    with (out / "distill.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _numbers(out):
    return [[row[n] for n in ("arm", "seed", "steps", "val_mae", "test_mae")] for row in _rows(out)]


@pytest.mark.soak
def test_every_part_gives_its_rows_tables_and_student(modules, task, tmp_path, capsys):
    out = tmp_path / "a" / "out"
    asked = task("a", "speed", "result", "ablation", "report")
    assert modules.distill.main(asked) == 0
    rows = _rows(out)
    header = ["arm", "seed", "steps", "minutes", "steps_per_s", "val_mae", "test_mae", "card"]
    assert list(rows[0]) == header
    speeds = [f"speed {name}" for name in ("plain", "eager", "kernel")]
    ablation = [f"{start} {terms}" for start in ("inherit", "random") for terms in TERMS]
    assert [row["arm"] for row in rows] == [*speeds, "teacher", *TRAINED, *ablation]
    assert {row["card"] for row in rows} == {modules.arms.card()}
    assert all(float(row["steps_per_s"]) > 0 for row in rows if row["arm"] != "teacher")
    assert all(row["val_mae"] and row["test_mae"] for row in rows[3:])
    assert [row["steps"] for row in rows[4:6]] == ["20", "20"]
    assert {row["steps"] for row in rows[6:]} == {"2"}
    printed = capsys.readouterr().out
    assert (out / "distill.md").read_text() in printed
    for heading in ("Steps a second", "Result", "Paired difference", "Ablation", "Minutes to"):
        assert f"### {heading}" in printed
    with Image.open(out / "distill.png") as plot:
        assert plot.size == (1440, 720)
    before = (out / "distill.csv").read_bytes()
    assert modules.distill.main(asked) == 0
    assert (out / "distill.csv").read_bytes() == before


@pytest.mark.soak
def test_the_student_kept_is_the_best_by_validation_and_names_its_architecture(
    modules, task, tmp_path
):
    out = tmp_path / "a" / "out"
    assert modules.distill.main(task("a", "result")) == 0
    told = json.loads((out / "models" / "csrnet_quarter_sha.json").read_text())
    trained = {row["arm"]: row for row in _rows(out) if row["arm"] != "teacher"}
    assert f"{told['val_mae']:.4g}" == min((r["val_mae"] for r in trained.values()), key=float)
    assert f"{told['test_mae']:.4g}" == trained[told["arm"]]["test_mae"]
    weights, metadata = read_weights(out / "models" / "csrnet_quarter_sha.safetensors")
    architecture = json.loads(metadata["architecture"])
    student = student_from_architecture(network(32, 0), architecture, tmp_path)
    student.load_state_dict(weights)
    assert told["params"] == sum(p.numel() for p in student.parameters())
    parsed = modules.distill.parsed(task("a", "result"))
    benchmark = modules.distill.Benchmark(parsed)
    judge = modules.train.Judge(benchmark.source)
    found = judge(student, benchmark.source.splits.test)[0]
    assert found["mae"] == pytest.approx(told["test_mae"])


@pytest.mark.soak
def test_both_arms_of_a_seed_share_start_schedule_and_time(modules, task, tmp_path):
    out = tmp_path / "a" / "out"
    assert modules.distill.main(task("a", "result")) == 0
    records = json.loads((out / "distill.json").read_text())
    skt, none = (
        records[modules.files.key(name, 0, modules.arms.card())] for name in ("skt", "none")
    )
    assert skt["curve"][0] == none["curve"][0]
    assert [p["step"] for p in skt["curve"]] == [0, 10, 20]
    assert skt["curve"][-1]["test_mae"] > 0
    assert list(skt["stages"]) == ["blocks", "whole", "polish"]
    assert list(none["stages"]) == ["whole", "polish"]
    assert (skt["stages"]["polish"]["crop"], skt["stages"]["polish"]["batch"]) == (24, 1)
    assert none["plan"]["stages"][0]["step_s"] == pytest.approx(skt["trained_s"] / (STEPS + 0.5))
    assert len(skt["test_errors"]) == SPLITS["test"]
    assert skt["test"]["mae"] == pytest.approx(np.mean(skt["test_errors"]), abs=1e-3)


@pytest.mark.soak
def test_short_calls_give_the_same_numbers(modules, task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    assert modules.distill.main(task("whole", "result")) == 0
    monkeypatch.setattr(modules.distill, "Clock", Stops)
    codes = [modules.distill.main(task("cut", "result", "--budget-minutes", "1"))]
    assert "skt, seed 0: stopped and kept" in capsys.readouterr().out
    while codes[-1] == 5 and len(codes) < 100:
        codes.append(modules.distill.main(task("cut", "result")))
    assert codes[-1] == 0
    assert set(codes[:-1]) == {5}
    assert len(codes) > 2 * STEPS / Stops.most
    whole, cut = tmp_path / "whole" / "out", tmp_path / "cut" / "out"
    assert _numbers(whole) == _numbers(cut)
    name = "models/csrnet_quarter_sha.safetensors"
    first, second = load_file(whole / name), load_file(cut / name)
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(("seconds", "evaluations"), [(180.0, 24), (30.0, 4), (2.0, 1)])
def test_setting_up_is_no_training_and_a_short_run_is_validated_less(
    modules, task, tmp_path, monkeypatch, seconds, evaluations
):
    benchmark = modules.distill.Benchmark(modules.distill.parsed(task("a", "result")))
    slow = [modules.train.Timing(setup_s=200.0, step_s=0.1)] * 2
    monkeypatch.setattr(modules.train, "timings", lambda *_: (slow, 3.0))
    base = modules.arms.changed(benchmark.source.spec(0).distill, evaluations=24)
    options = modules.arms.progressive(base, "none")
    arm = modules.arms.Arm("none", 0, "inherit", options, seconds=seconds)
    planned = modules.train.plan(arm, benchmark.source, tmp_path)
    steps = [stage.steps for stage in planned.stages]
    assert planned.evaluations == evaluations
    assert 0.1 * sum(steps) == pytest.approx(
        max(seconds - 3.0 * (evaluations + 1), seconds / 2), abs=0.25
    )
    assert modules.train.plan(arm, benchmark.source, tmp_path) == planned  # kept


def test_an_ablation_of_equal_time_follows_that_of_equal_steps(modules, task, tmp_path):
    asked = [*task("a", "ablation"), "--starts", "inherit", "--terms", "none", "unlabelled"]
    benchmark = modules.distill.Benchmark(modules.distill.parsed([*asked, "--seconds", "40"]))
    given = benchmark.options
    arms = modules.arms.ablation(
        benchmark.source.spec(0).distill, 0, given.steps, given.starts, given.terms, given.seconds
    )
    names = [arm.name for arm in arms]
    assert names == [
        "inherit none", "inherit unlabelled", "inherit none, 40 s", "inherit unlabelled, 40 s"
    ]  # fmt: skip
    assert [arm.seconds for arm in arms] == [None, None, 40.0, 40.0]
    assert [arm.distill.steps for arm in arms] == [2, 2, None, None]
    assert arms[1].distill.weights == {"hard": 0.0, "count": 0.0}
    here = {"seed": "0", "card": "a card", "val_mae": "1", "test_mae": "2", "minutes": "3"}
    rows = [{"arm": n, **here} for n in names]
    table = modules.report.ablation_table(rows)
    curve = {"curve": [{"minutes": 1.0, "val_mae": 2.0}]}
    records = {modules.files.key(n, "0", "a card"): curve for n in names}
    modules.report.plot(rows, records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert [line[0] for line in table[1:]] == [
        "none",
        "unlabelled",
        "none, 40 s",
        "unlabelled, 40 s",
    ]


def test_it_says_what_remains(modules, task, capsys):
    assert modules.distill.main(task("a", "ablation", "--budget-minutes", "0.001")) == 5
    printed = capsys.readouterr().out
    assert "remains: inherit none, seed 0; inherit kd, seed 0" in printed


def test_a_work_folder_is_not_mixed_with_other_options(modules, task, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(modules.distill, "Clock", Stops)
    assert modules.distill.main(task("a", "result")) == 5
    with pytest.raises(SystemExit, match="was begun with other options"):
        modules.distill.main([*task("a", "result"), "--set", "distill.weight_decay=0.5"])


def test_an_error_of_the_user_is_told(modules, task, tmp_path, capsys):
    arguments = [*task("a", "ablation"), "--data", str(tmp_path / "nowhere")]
    assert modules.distill.main(arguments) == 1
    assert "error[data-missing]" in capsys.readouterr().err


def test_a_worse_student_replaces_nothing(modules, tmp_path):
    results = modules.files.Results(tmp_path)
    offers = [(2.0, True), (3.0, False), (1.5, True), (1.5, False)]
    for value, is_kept in offers:
        weights = {"w": torch.full((1,), value)}
        assert results.offer(weights, {"family": "shrink"}, {"val_mae": value}) == is_kept
    assert load_file(tmp_path / "models" / "csrnet_quarter_sha.safetensors")["w"] == 1.5


def test_when_a_level_was_reached(modules):
    curve = [{"minutes": m, "val_mae": v} for m, v in ((0, 90.0), (1, 85.0), (2, 79.0), (3, 80.0))]
    assert modules.report.reached(curve, "val_mae", 85.0) == 1
    assert modules.report.reached(curve, "val_mae", 78.0) is None
    assert modules.report.reached(curve, "test_mae", 85.0) is None


def test_the_rate_leaves_validation_and_compiling_out(modules):
    rows = [{"step": 0, "val_mae": 1.0}, {"step": 1, "ms": 50.0}, {"step": 5, "ms": 25.0}]
    state = SimpleNamespace(step=5, metrics=rows)
    assert modules.train.stepping_rate(state) == pytest.approx(5 / 0.150)
