"""Outputs that are scores along an axis, and metrics of agreement and of a whole set."""

import json

import numpy as np
import pytest
import torch
from command_line import kdcompile
from two_inputs import network, samples, write

from kdcompile.config.load import load_spec
from kdcompile.config.spec import Scores
from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.along import check_axes, check_probabilities, disagreement
from kdcompile.tasks.generic import Generic, Scored, ScoredSet
from kdcompile.tasks.task import task_of

SCORE = """
import numpy as np


def rms(outputs, samples):
    gaps = [o["scores"][0] - s["target"] for o, s in zip(outputs, samples, strict=True)]
    return float(np.sqrt(np.mean(np.square(gaps))))


def one(outputs, sample):
    return float(abs(outputs["scores"][0] - sample["target"]).mean())
"""
AXIS = "task.outputs.scores.axis=1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    write(folder)
    (folder / "score.py").write_text(SCORE)
    return folder


def _spec(folder, *sets):
    return load_spec(folder / "kdcompile.toml", [*sets])


def _numbers(report):
    return {(m["name"], m["precision"]): m for m in report["measurements"]}


def test_a_metric_over_the_set_is_what_the_gate_judges(folder):
    sets = [AXIS, "task.metric=score.py:rms", "task.metric_over=set", "quantize.precision=fp32",
            "gates.accuracy.max_increase=50%", "gates.accuracy.margin=80%"]  # fmt: skip
    words = [word for one in sets for word in ("--set", one)]
    kdcompile(folder, "build", "kdcompile.toml", "-o", "bundle", *words)
    report = json.loads((folder / "bundle" / "report.json").read_text())
    gate = next(g for g in report["gates"] if g["name"] == "accuracy")
    assert gate["threshold"] == "set_score at most 50% over the teacher's, 95 % bound within 80%"
    numbers = _numbers(report)
    teacher, student = (numbers[who + " set_score", "fp32"] for who in ("teacher", "student"))
    (increase,) = gate["measurements"]
    assert increase["name"] == "set_score increase"
    assert increase["value"] == pytest.approx(student["value"] - teacher["value"])
    assert increase["low"] < increase["value"] < increase["high"]
    assert student["low"] is None  # no resamples for a number that decides nothing
    assert numbers["student sqnr_db", "fp32"]["unit"] == "dB"
    assert numbers["student disagreement", "fp32"]["value"] <= 1
    assert numbers["teacher disagreement", "fp32"]["value"] == 0
    given = {name: torch.from_numpy(array[64:]) for name, array in samples(80).items()}
    with torch.no_grad():
        scores = network()(given["signal"], given["ids"])["scores"]
    wanted = (scores - given["target"]).square().mean().sqrt()
    assert teacher["value"] == pytest.approx(float(wanted), rel=1e-4)


def test_the_training_takes_the_axis_and_selects_by_disagreement(folder):
    words = ["--set", AXIS, "--set", "task.metric=disagreement", "--set", "quantize.precision=fp32"]
    kdcompile(folder, "build", "kdcompile.toml", "-o", "agreed", *words)
    lines = (folder / "agreed" / "metrics.jsonl").read_text().splitlines()
    found = [row["val_disagreement"] for row in map(json.loads, lines) if "val_disagreement" in row]
    assert all(0 <= value <= 1 for value in found)
    assert len(found) > 1
    report = json.loads((folder / "agreed" / "report.json").read_text())
    assert report["details"]["task"]["metric"] == "disagreement"
    assert {row["student"] for row in report["details"]["predictions"]} <= {0.0, 1.0}
    gate = next(g for g in report["gates"] if g["name"] == "accuracy")
    assert gate["threshold"] == "disagreement at most 5, 95 % bound at most 6"
    assert gate["observed"].startswith("disagreement ")


def test_the_plan_refuses_an_output_that_is_not_there(folder):
    words = ["--set", "task.outputs.score.axis=1"]
    told = " ".join(kdcompile(folder, "plan", "kdcompile.toml", *words, code=1).stderr.split())
    assert "error[task-outputs]" in told
    assert "no output 'score' (did you mean 'scores'?)" in told
    assert "name one of scores, trace" in told


def test_a_recipe_of_feature_maps_trains_beside_the_softened_kl(folder):
    sets = [AXIS, "distill.recipe=fitnet", "distill.steps=3", "distill.evaluations=1"]
    kdcompile(folder, "distill", "kdcompile.toml", *(w for one in sets for w in ("--set", one)))
    paths = folder.glob(".kdcompile/distill/*/result.json")
    (found,) = (made for made in map(json.loads, (p.read_text() for p in paths)) if made["taps"])
    assert found["recipe"] == "fitnet"
    assert set(found["losses"]) == {"feature_mse", "kd_kl"}


PORTS = Ports((Port("scores", (1, 6), "float32"), Port("one", (1, 1), "float32")))


@pytest.mark.parametrize(
    ("name", "axis", "says"),
    [
        ("scores", 2, "scores is [1, 6]: axis 2 has no two classes"),
        ("scores", -3, "axis -3"),
        ("scores", 0, "axis 0"),
        ("one", 1, "one is [1, 1]"),
    ],
)
def test_an_axis_without_classes_is_refused(name, axis, says):
    with pytest.raises(KDError) as caught:
        check_axes({name: Scores(axis=axis)}, PORTS)
    assert says in caught.value.message
    assert "leave it out" in caught.value.fix if name == "one" else "classes, 1" in caught.value.fix
    check_axes({"scores": Scores(axis=-1)}, PORTS)


def test_probabilities_that_are_none_are_refused():
    axes = {"scores": Scores(axis=1, form="probabilities")}
    check_probabilities(axes, {"scores": np.array([[0.25, 0.749, 0.0]])}, "photo")
    check_probabilities({"scores": Scores(axis=1)}, {"scores": np.array([[3.0, -1]])}, "photo")
    for wrong in ([[0.5, 0.6]], [[1.5, -0.5]], [[np.nan, 1.0]]):
        with pytest.raises(KDError) as caught:
            check_probabilities(axes, {"scores": np.array(wrong)}, "photo")
        assert caught.value.code == "task-outputs"
        assert 'form = "logits"' in caught.value.fix


def test_the_training_refuses_logits_that_are_said_to_be_probabilities(folder):
    words = ["--set", AXIS, "--set", "task.outputs.scores.form=probabilities"]
    told = kdcompile(folder, "distill", "kdcompile.toml", *words, code=1).stderr
    assert "error[task-outputs]" in told


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["task.metric_over=set"], 'needs metric = "file.py:score"'),
        (["task.metric=rel_error", "task.metric_over=set"], 'needs metric = "file.py:score"'),
        (["gates.strata.margin=30%"], "no parts of its samples"),
        (["task.metric=sqnr_db"], "rel_error|disagreement"),
        (["gates.accuracy.metric=sqnr_db"], "not one of generic: rel_error, disagreement"),
        (["task.outputs.scores.axis=1", "task.outputs.scores.form=softmax"], "probabilities"),
    ],
)
def test_a_spec_that_says_what_cannot_be_is_refused(folder, sets, says):
    with pytest.raises(KDError) as caught:
        _spec(folder, *sets)
    assert caught.value.code == "spec-invalid"
    assert says in str(caught.value.message) + str(caught.value.fix)


def test_outputs_of_a_task_with_labels_are_refused(folder):
    plain = (folder / "kdcompile.toml").read_text().replace('"generic"', '"classification"')
    plain = plain[: plain.index("[export.inputs]")] + "[task.outputs.scores]\naxis = 1\n"
    (folder / "labels.toml").write_text(plain)
    with pytest.raises(KDError) as caught:
        load_spec(folder / "labels.toml")
    assert 'task.outputs needs task.kind = "generic"' in str(caught.value)


def test_disagreement_needs_an_axis(folder):
    with pytest.raises(KDError) as caught:
        task_of(_spec(folder, "task.metric=disagreement"))
    assert caught.value.code == "task-metric"
    assert "axis" in caught.value.fix
    task = task_of(_spec(folder))
    with pytest.raises(KDError) as caught:
        task.find_metric("disagreement")
    assert caught.value.fix == "use one of rel_error"


def test_a_metric_decides_what_a_prediction_is(folder):
    answer = {"scores": np.array([[0.0, 2, 1], [3, 0, 0]])}
    outputs = {"scores": np.array([[0.0, 1, 2], [3, 0, 0]])}
    frame = Frame((1, 1), (1, 1), (1, 1), answer, {"y": np.array(2)})
    axes = {"scores": Scores(axis=1)}
    row = np.array([[0.0, 1, 2, 3, 0, 0]])
    relative = 2**0.5 / 14**0.5
    one, both = Scored(lambda o, s: 7.0, "x", axes), ScoredSet(lambda o, s: 7.0, "x", axes)
    for task, prediction, others in (
        (Generic(axes), relative, [0.5, -20 * np.log10(relative)]),
        (Generic(axes, "disagreement"), 0.5, [relative, -20 * np.log10(relative)]),
        (one, 7, [relative, 0.5, -20 * np.log10(relative)]),
        (both, relative, [0, 0.5, -20 * np.log10(relative)]),
    ):
        seen = task.within(row, frame)
        assert task.predictions(seen) == pytest.approx([prediction])
        assert task.map_errors(seen, None, frame) == pytest.approx(others)
    assert [m.name for m in both.map_metrics] == ["set_score", "disagreement", "sqnr_db"]
    assert disagreement(outputs, answer, axes) == 0.5
    assert both.judged.name == "set_score"
    assert both.selection_metric(None).name == "rel_error"
    broken = {"scores": np.array([[0.0, 1, np.nan], [np.nan, 0, 0]])}
    assert disagreement(broken, answer, axes) == 1
    worst = {"a": Scores(axis=0), "b": Scores(axis=0)}
    assert disagreement({"a": np.eye(2), "b": np.eye(2)}, {"a": np.eye(2), "b": 1 - np.eye(2)},
                        worst) == 1  # fmt: skip
