"""The pilot of `auto`, the range test, and that both go on where they were stopped."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
from tiny_training import PowerCutError, network, photos

from kdcompile.data.rows import store_of
from kdcompile.distill import pilot, preparation, range_test
from kdcompile.distill.pilot import Arm, arms_of, cheapest_of_the_best, survivors
from kdcompile.distill.preparation import preparation_findings, settle
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.short_run import Cost, Outcome, ShortRuns
from kdcompile.tasks.task import preprocess_of

COUNT = 30
AUTO = ("distill.recipe=auto", "distill.steps=600", "data.std=[0.5]")


class Planted:
    """Short trainings whose ends are known: errors of each validation photo by name."""

    def __init__(self, ends):
        self.ends, self.asked = ends, []
        self.judged = photos(COUNT, 1)
        self.true = np.array([photo.count for photo in self.judged], float)
        self.pool = ()

    def run(self, name, spec, steps):
        self.asked.append((name, steps))
        key = name.removeprefix("pilot-1-").removeprefix("pilot-2-").removeprefix("rate-")
        errors = self.ends[key]
        if isinstance(errors, str):
            return Outcome(nan, nan, np.zeros(0), np.zeros(0), errors)
        value = float(np.abs(errors).mean())
        return Outcome(value, 1.0, self.true + errors, self.true + 1.0)


def _even(size):
    return np.full(COUNT, float(size))


def _noisy(size, seed=0):
    return size * np.random.default_rng(seed).exponential(1.0, COUNT)


def _chosen(spec, ends, names=("none", "kd", "skt")):
    runs = Planted(ends)
    return *pilot.choose([(Arm(n), runs) for n in names], spec, [60, 10, 10]), runs


@pytest.mark.parametrize("best", ["none", "kd", "skt"])
def test_what_is_clearly_the_best_is_chosen(spec, best):
    ends = {name: _even(0.5 if name == best else 1.0) for name in ("none", "kd", "skt")}
    arm, record, _ = _chosen(spec(*AUTO), ends)
    assert arm.recipe == record["chosen"] == best
    told = pilot.finding(record)
    assert bool(told) == (best == "none")
    assert all("the teacher does not help here" in text for text in told)


def test_a_tie_goes_to_the_cheapest_and_a_gain_beyond_noise_does_not(spec):
    ends = {"none": _noisy(1.02, 1), "kd": _noisy(1.0, 2), "skt": _noisy(1.01, 3)}
    assert _chosen(spec(*AUTO), ends)[0].recipe == "none"
    ends = {"none": _even(1.02), "kd": _even(1.0), "skt": _even(1.01)}  # no noise between them
    assert _chosen(spec(*AUTO), ends)[0].recipe == "kd"


@pytest.mark.parametrize(("times", "first"), [(1.6, 0), (1.7, 1)])
def test_noise_is_the_one_sided_bound(times, first):
    assert cheapest_of_the_best({0: (times * 0.1, 0.1), 1: (0.0, 0.0)}) == first


def test_the_better_half_goes_on_for_twice_as_long(spec):
    ends = {"none": _even(0.9), "kd": _even(0.5), "skt": _even(0.7)}
    _, record, runs = _chosen(spec(*AUTO), ends)
    assert runs.asked == [
        ("pilot-1-none", 60), ("pilot-1-kd", 10), ("pilot-1-skt", 10),
        ("pilot-2-kd", 20), ("pilot-2-skt", 20),
    ]  # fmt: skip
    assert [row["round"] for row in record["arms"]] == [1, 1, 1, 2, 2]
    # the arm that a tie would choose is not lost on the way
    assert survivors({0: (0.3, 1.0), 1: (0.2, 1.0), 2: (0.1, 1.0), 3: (0.0, 0.0)}, 0) == [0, 3]


def test_an_arm_that_cannot_run_is_left_out(spec):
    ends = {"none": _even(0.9), "kd": _even(0.5), "skt": "no feature maps"}
    arm, record, _ = _chosen(spec(*AUTO), ends)
    assert arm.recipe == "kd"
    row = record["arms"][2]
    assert (row["value"], row["why"]) == (None, "no feature maps")
    assert pilot.row_in_words(row, "mae").endswith("left out: no feature maps")


def test_arms_follow_from_task_and_pool(spec):
    loaded = spec(*AUTO)
    assert [arm.name for arm in arms_of(loaded, False)] == ["none", "kd", "skt"]
    names = [arm.name for arm in arms_of(loaded, True)]
    assert names == ["none", "kd", "skt", "kd-unlabelled", "skt-unlabelled"]
    assert [arm.name for arm in arms_of(loaded, False, has_label_loss=False)] == ["kd", "skt"]
    others = spec(*AUTO, "task.kind=classification")
    assert [arm.name for arm in arms_of(others, False)] == ["none", "kd", "at"]


def test_an_arm_keeps_the_weights_that_it_knows_and_the_stages_of_the_user(spec):
    stages = '[[distill.stages]]\nname = "a"\nshare = 0.5\nrecipe = "skt"\n'
    stages += '[[distill.stages]]\nname = "b"\nshare = 0.5\n'
    loaded = spec(*AUTO, "distill.weights={ soft = 2.0, hard = 3.0 }", more=stages)
    labels = Arm("none").spec(loaded).distill
    assert labels.weights == {"hard": 3.0}
    assert [stage.recipe for stage in labels.stages] == ["skt", "none"]
    assert labels.unlabelled == 0
    assert Arm("kd", True).spec(loaded).distill.unlabelled == 0.5


def test_a_pilot_costs_at_most_its_share():
    arms, cost = [Arm("none"), Arm("kd"), Arm("skt")], Cost(1.0, 16.0, 0.0)
    steps = pilot.steps_of(arms, 1000, 4, cost)
    each = [cost.of_step(4, find_recipe(arm.recipe).needs_teacher) for arm in arms]
    first = sum(n * one for n, one in zip(steps, each, strict=True))
    second = 2 * (steps[0] * each[0] + steps[1] * each[1])
    assert 0.14 < (first + second) / (1000 * max(each)) <= 0.15
    assert steps[0] > 6 * steps[1]  # steps of equal cost
    assert pilot.steps_of(arms, 380, 4, cost)[1] == 8
    assert pilot.steps_of(arms, 360, 4, cost) == []
    assert pilot.steps_of(arms, 1000, 4, replace(cost, validation=1e6)) == []


def _ranged(spec, ends):
    runs = Planted(ends)
    return range_test.try_rates(runs, spec("distill.steps=600"), 10), runs


def test_the_range_test_ends_at_the_rate_that_spoils_the_start(spec):
    ends = {"1e-05": _even(0.9), "3e-05": _even(0.7), "0.0001": _even(1.5)}
    found, runs = _ranged(spec, ends)
    assert found["lr"] == 3e-5
    assert [row["spoilt"] for row in found["rates"]] == [False, False, True]
    assert len(runs.asked) == 3
    assert range_test.finding("mae", found) == []


def test_of_rates_that_are_as_good_the_largest_is_taken(spec):
    ends = dict.fromkeys(("1e-05", "3e-05", "0.0001", "0.0003"), _even(0.9))
    ends["0.001"] = _even(0.95)  # worse than the others on every photo
    assert _ranged(spec, ends)[0]["lr"] == 3e-4
    ends["0.001"] = _noisy(0.9)
    assert _ranged(spec, ends)[0]["lr"] == 1e-3


@pytest.mark.parametrize("end", [_even(2.0), "the loss is nan"])
def test_a_start_that_every_rate_spoils_takes_the_smallest_and_says_so(spec, end):
    found, _ = _ranged(spec, {"1e-05": end})
    assert (found["lr"], found["spoils_all"]) == (1e-5, True)
    assert "no learning rate" in range_test.finding("mae", found)[0]


def test_a_range_test_is_as_long_as_its_share_allows():
    cost = Cost(1.0, 16.0, 0.0)
    lengths = (399, 400, 1000, 1200, 9000)
    assert [range_test.steps_of(n, 4, cost, True) for n in lengths] == [0, 8, 20, 24, 24]
    assert range_test.steps_of(400, 4, replace(cost, validation=10.0), True) == 0


def _runs(spec, work):
    train = photos(12, 0)
    store = store_of(train, preprocess_of(spec), torch.device("cpu"))
    return ShortRuns(network(8, 0), network(4, 1), train, photos(8, 1), work, store)


def test_a_pilot_that_is_killed_goes_on_and_chooses_the_same(spec, tmp_path, monkeypatch):
    loaded = spec(*AUTO, "distill.range_test=true")
    monkeypatch.setattr(preparation, "cost_of", lambda *_: Cost(1.0, 1.0, 0.0))
    monkeypatch.setattr(pilot, "SHARE", 0.012)
    monkeypatch.setattr(pilot, "LEAST_STEPS", 1)
    monkeypatch.setattr(pilot, "arms_of", lambda *_: [Arm("none"), Arm("kd")])
    monkeypatch.setattr(range_test, "RATES", (1e-5, 1e-3))
    monkeypatch.setattr(range_test, "LEAST_STEPS", 1)
    monkeypatch.setattr(range_test, "MOST_STEPS", 2)
    whole = settle(loaded, _runs(loaded, tmp_path / "whole"), True)
    assert whole[1]["range_test"]["rates"]
    assert len(whole[1]["pilot"]["arms"]) == 2
    real, trained = ShortRuns._trained, []

    def cut(self, name, spec, steps):
        if len(trained) == 3:
            raise PowerCutError
        trained.append(name)
        return real(self, name, spec, steps)

    monkeypatch.setattr(ShortRuns, "_trained", cut)
    with pytest.raises(PowerCutError):
        settle(loaded, _runs(loaded, tmp_path / "cut"), True)
    before = list(trained)
    monkeypatch.setattr(ShortRuns, "_trained", lambda self, name, *a: (
        trained.append(name), real(self, name, *a))[1])  # fmt: skip
    again = settle(loaded, _runs(loaded, tmp_path / "cut"), True)
    assert again[1] == whole[1]
    assert again[0].distill == whole[0].distill
    assert len(set(trained)) == len(trained) > len(before)


def test_nothing_is_tried_where_nothing_is_left_open(spec, tmp_path):
    named = spec("distill.recipe=kd", "distill.lr=1e-3", "distill.steps=600")
    assert not named.distill.range_test
    nothing = {"range_test": None, "pilot": None}
    assert settle(named, _runs(named, tmp_path / "a"), True) == (named, nothing)
    assert preparation_findings("mae", nothing) == []
    random = spec("distill.recipe=kd", "distill.steps=600", "distill.range_test=true")
    assert settle(random, _runs(random, tmp_path / "b"), False)[1] == nothing
    still = spec("distill.recipe=auto", "distill.steps=0")
    assert settle(still, _runs(still, tmp_path / "c"), True)[0].distill.recipe == "skt"


def test_a_short_training_takes_the_recipe_of_its_task_and_says_why(spec, tmp_path):
    short = spec("distill.recipe=auto", "distill.steps=20")
    found, tried = settle(short, _runs(short, tmp_path / "a"), True)
    assert found.distill.recipe == "skt"
    assert "20 steps are too few for a pilot" in tried["pilot"]["why"]
    assert pilot.finding(tried["pilot"]) == []
