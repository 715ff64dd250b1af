"""What `plan` says of a number of photos, held against the gates themselves."""

import numpy as np
import pytest

from kdcompile.config.gates import Gates
from kdcompile.gates.accuracy import accuracy
from kdcompile.gates.churn import flips
from kdcompile.gates.context import Earlier
from kdcompile.gates.previous import previous
from kdcompile.gates.registry import decidable
from kdcompile.gates.subgroups import strata
from kdcompile.stats.noninferiority import MIN_IMAGES
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.task import find_task

GATES = {"accuracy": accuracy, "strata": strata, "flips": flips, "previous": previous}
CLASSES = ("cat", "dog", "owl")
EARLIER = Earlier("v1 for cpu", "0" * 64, "int8", "its ONNX file")


def truth(kind, n):
    """Annotated values; classes go round."""
    return np.arange(n) % 3.0 if kind == "classification" else np.arange(n) * 7.0


def said(kind, gates, n):
    """What is said of n photos, by gate."""
    classes = CLASSES if kind == "classification" else None
    found = decidable(Gates(**gates), find_task(kind), truth(kind, n), classes, 0)
    return {row.gate: row for row in found}


def gate_passes(make_context, kind, gates, name, n):
    """Whether the gate itself passes n photos of networks that are never wrong."""
    true, classes = truth(kind, n), CLASSES if kind == "classification" else None
    maps = {who: np.zeros((n, 3)) for who in ("teacher", "student", "previous")}
    context = make_context(
        kind, true, true, true, classes, EARLIER, previous=true, maps=maps
    )  # fmt: skip
    return GATES[name](getattr(Gates(**gates), name), context).verdict == "passed"


def asked(kind, metric, margin, most):
    own = {"metric": metric, "margin": margin}
    return {
        "accuracy": {**own, "max_increase": "0%"}, "strata": own, "flips": {"max": most},
        "previous": {**own, "max_flips": most},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "metric", "margin", "most"),
    [
        ("counting", "mae", "0%", "5%"),
        ("counting", "game2", "15%", "30%"),
        ("regression", "rmse", "15%", "9.5%"),
        ("classification", "top1", "5%", "5%"),
        ("classification", "top1", "12.5%", "20%"),
        ("classification", None, "60%", "90%"),
    ],
)
def test_a_gate_passes_perfect_data_exactly_when_the_plan_said_it_could(
    make_context, kind, metric, margin, most
):
    gates = asked(kind, metric, margin, most)
    seen = set()
    for n in (1, 2, 3, 7, 8, 9, 23, 24, 28, 29, 51, 52, 58, 59, 60, 156, 159):
        for name, row in said(kind, gates, n).items():
            passes = gate_passes(make_context, kind, gates, name, n)
            assert row.decides == passes, (name, n, row)
            assert row.images == n
            if not row.each:
                assert row.decides == (n >= row.needed)
            seen.add(passes)
    assert seen == {True, False}


def test_what_is_needed_is_what_the_gate_needs(make_context):
    gates = asked("classification", "top1", "5%", "5%")
    wanted = {"accuracy": 52, "flips": 59, "previous": 59}  # z^2 / (n + z^2); 1 - 0.05^(1 / n)
    for name, needed in wanted.items():
        assert said("classification", gates, 24)[name].needed == needed
        assert gate_passes(make_context, "classification", gates, name, needed)
        assert not gate_passes(make_context, "classification", gates, name, needed - 1)
    parts = said("classification", gates, 24)["strata"]
    assert (parts.needed, parts.each) == (52, True)
    assert gate_passes(make_context, "classification", gates, "strata", 3 * 52)
    assert not gate_passes(make_context, "classification", gates, "strata", 3 * 52 - 1)


def test_no_number_of_photos_proves_a_rate_unchanged():
    found = said("classification", {"accuracy": {"margin": "0%"}}, 2000)["accuracy"]
    assert (found.decides, found.needed) == (False, None)


def test_a_class_that_no_photo_shows_is_named():
    gates = Gates(strata={"margin": "60%"})
    true = np.repeat([0.0, 1], 40)
    found = decidable(gates, find_task("classification"), true, CLASSES, 0)[-1]
    assert (found.gate, found.decides) == ("strata", False)
    assert found.why == "no test image of owl"


@pytest.mark.parametrize("least", [1, 2, 3, 59, 1000, 10_000_000])
def test_the_least_number_is_found(least):
    assert least_number(lambda n: n >= least) == least
    assert least_number(lambda n: n >= least, least - 1) == least


def test_more_than_the_most_is_no_number():
    assert least_number(lambda n: n > 10_000_000) is None


@pytest.mark.parametrize(("kind", "metric"), [("segmentation", "miou"), ("detection", "map50")])
@pytest.mark.parametrize(("n", "decides"), [(MIN_IMAGES - 1, False), (MIN_IMAGES, True)])
def test_a_metric_of_a_set_is_1_where_nothing_is_wrong(kind, metric, n, decides):
    (row,) = decidable(Gates(accuracy={"metric": metric}), find_task(kind), np.zeros(n), CLASSES, 0)
    assert row.decides is decides
    assert row.needed == MIN_IMAGES
