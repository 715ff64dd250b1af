"""Refinements are kept where they help, and only there."""

import json

import numpy as np
import pytest
from onnx import ModelProto
from refine_networks import badly_scaled, model_of, node, photos, table_of, weights

from kdcompile.calib import refine as refinement
from kdcompile.calib.keep_if_better import Outcome, against, compare
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.refine import Inputs, Trial, refine
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.stats import bootstrap
from kdcompile.tasks.metric import MAE, RMSE, TOP1
from kdcompile.tasks.task import find_task

IMAGES = photos(8)
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal(40)


def calibrated(model: ModelProto):
    return table_of(model, IMAGES)


def steps(monkeypatch: pytest.MonkeyPatch, **idle: bool) -> list[str]:
    """Replace the refinements by ones that only note that they ran."""
    ran: list[str] = []

    def noting(name: str):
        def step(trial: Trial, images, calibrate):
            ran.append(name)
            changed = ModelProto()
            changed.CopyFrom(trial.model)
            changed.doc_string += name
            return Trial(trial.reference, changed, trial.table, None), [] if idle.get(name) else [1]

        return step

    known = {name: noting(name) for name in refinement.REFINEMENTS}
    monkeypatch.setattr(refinement, "REFINEMENTS", known)
    return ran


def scripted(*gains: float, errors: tuple[float, ...] = ()):
    """A judge whose n-th outcome is 30 dB plus a gain, with noise over images."""
    calls = iter(range(len(gains)))

    def judge(_: ModelProto) -> Outcome:
        n = next(calls)
        sqnr = 30 + NOISE + gains[n] + 0.1 * np.roll(NOISE, n)
        return Outcome(sqnr, 5 + np.abs(NOISE) + errors[n], MAE) if errors else Outcome(sqnr)

    return judge


def run(model: ModelProto, asked: list[str], judge):
    return refine(model, calibrated(model), asked, IMAGES, calibrated, judge)


def test_each_is_judged_on_top_of_those_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch)
    found = run(badly_scaled(), ["equalise", "bias", "rounding"], scripted(0, 1, 0.5, 1.6))
    assert [(r.name, r.kept) for r in found.records] == [
        ("equalise", True), ("bias", False), ("rounding", True),
    ]  # fmt: skip
    assert found.model.doc_string == "equaliserounding"
    assert found.records[2].before_db == found.records[0].after_db
    assert "fell: -0.50 dB" in found.records[1].why


def test_no_measurable_change_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    steps(monkeypatch)
    model = badly_scaled()
    found = run(model, ["bias"], scripted(0, 0.0))
    assert not found.records[0].kept
    assert "did not change measurably" in found.records[0].why
    assert found.model == model
    low, high = found.records[0].worth.gain_interval_db
    assert low < 0 < high


@pytest.mark.parametrize(("increase", "kept"), [(-0.5, True), (0.0, True), (0.5, False)])
def test_a_measurably_worse_metric_forbids_it(
    monkeypatch: pytest.MonkeyPatch, increase: float, kept: bool
) -> None:
    steps(monkeypatch)
    found = run(badly_scaled(), ["bias"], scripted(0, 1, errors=(0, increase)))
    assert found.records[0].kept is kept
    assert ("the metric is worse" in found.records[0].why) is not kept
    assert found.records[0].worth.worse_by == pytest.approx(increase)


def test_equalisation_goes_first_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = steps(monkeypatch)
    run(badly_scaled(), ["rounding", "bias", "equalise", "bias"], scripted(0, 1, 2, 3))
    assert ran == ["equalise", "rounding", "bias"]


def test_nothing_to_do_is_said() -> None:
    values = weights(w1=(4, 3, 3, 3), w2=(1, 4, 1, 1))
    nodes = [
        node("Conv", ["image", "w1"], ["c"], "one"),
        node("Conv", ["c", "w2"], ["y"], "out"),
    ]
    model = model_of(nodes, values, {"y": [1, 1, 14, 14]})
    (record,) = run(model, ["equalise"], against(model, photos(8, seed=2))).records
    assert (record.kept, record.after_db, record.worth) == (False, None, None)
    assert "no layer" in record.why


def test_nothing_asked_costs_nothing() -> None:
    model = badly_scaled()
    found = run(model, [], scripted())
    assert (found.model, found.records) == (model, ())


@pytest.mark.parametrize(("fit", "judged", "where"), [(7, 8, "train"), (8, 7, "val")])
def test_too_few_images_are_refused(fit: int, judged: int, where: str) -> None:
    model = badly_scaled()
    judge = against(model, photos(judged, seed=2))
    with pytest.raises(KDError) as error:
        refine(model, calibrated(model), ["bias"], photos(fit), calibrated, judge)
    assert error.value.code == "refine-few"
    assert where in error.value.where
    fixed = refine(model, calibrated(model), [], photos(fit), calibrated, judge)
    assert not fixed.records  # as the fix says: quantize.refine = []


def test_a_badly_scaled_network_is_refined() -> None:
    """The whole way: equalisation must win by far, and the original stays what it was."""
    model = badly_scaled()
    before = model.SerializeToString()
    judge = against(model, photos(12, seed=2))
    found = run(model, ["bias", "equalise"], judge)
    assert model.SerializeToString() == before
    first = found.records[0]
    assert (first.name, first.kept) == ("equalise", True)
    assert first.worth.gain_interval_db[0] > 5
    last = [r.after_db for r in found.records if r.kept][-1]
    assert judge(insert_qdq(found.model, found.table)).mean_db == pytest.approx(last)
    read = json.loads(json.dumps(found.to_json()))
    assert read[0]["worth"]["gain_db"] == pytest.approx(first.worth.gain_db)
    assert read[0]["details"] == [["one", "depthwise"], ["depthwise", "two"]]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(3), 0
    for seed in range(60):
        truth = rng.standard_normal(40)
        gain = compare(Outcome(truth), Outcome(truth + 0.3 + rng.standard_normal(40)), seed)
        hits += gain.gain_interval_db[0] <= 0.3 <= gain.gain_interval_db[1]
    assert 50 <= hits <= 60


def test_a_rate_is_worse_when_it_falls() -> None:
    sqnr = np.full(40, 30.0)
    right, wrong = np.zeros(40), (np.arange(40) < 20).astype(float)
    worth = compare(Outcome(sqnr, right, TOP1), Outcome(sqnr + 1, wrong, TOP1))
    assert worth.worse_by == 0.5
    assert worth.is_harmful
    assert not worth.is_worth_it


def test_the_judge_knows_the_task() -> None:
    model = badly_scaled()
    images = photos(8, seed=2)
    table = calibrated(model)
    task = find_task("counting")
    outcome = against(model, images, task, [0.0] * 8, RMSE)(insert_qdq(model, table))
    assert outcome.metric == RMSE
    assert outcome.errors is not None
    assert outcome.errors.shape == outcome.sqnr_db.shape == (8,)
    equal = against(model, images, task, [0.0] * 8)(model)
    assert equal.mean_db == 200.0


def test_inputs_are_read_anew_each_time() -> None:
    pixels = np.full((4, 6, 1), 51, np.uint8)
    points = np.zeros((0, 2), np.float32)
    inputs = Inputs(
        [Photo("a", points, array=pixels)] * 3, Preprocess(1, (0.1,), (0.5,), (4, 6), (4, 6))
    )
    assert len(inputs) == len(list(inputs)) == len(list(inputs)) == 3
    assert next(iter(inputs)).shape == (1, 1, 4, 6)
    assert next(iter(inputs)).max() == pytest.approx(0.2)


def test_an_interval_is_the_same_however_much_is_drawn_at_a_time(monkeypatch) -> None:
    """Ten thousand images at once would take gigabytes."""
    rng = np.random.default_rng(0)
    sqnr, errors = rng.standard_normal(300), rng.integers(0, 2, 300).astype(float)
    pair = Outcome(sqnr, errors, TOP1), Outcome(sqnr + rng.standard_normal(300), errors[::-1], TOP1)
    found = compare(*pair)
    monkeypatch.setattr(bootstrap, "BATCH_VALUES", 10_000)
    assert compare(*pair) == found
