"""A student is priced at the precision that is expected to ship."""

import re
from dataclasses import replace

import pytest

from kdcompile.config.load import load_spec
from kdcompile.config.step import Step
from kdcompile.config.template import init_example
from kdcompile.core.store import Store
from kdcompile.latency_model.network_cost import (
    Network,
    candidate_precisions,
    fastest,
    paired_precision,
)
from kdcompile.models.factory import load_teacher
from kdcompile.passes import search
from kdcompile.targets import load

CPU = load("cpu")
SLOW_INT8 = replace(CPU, peak_tflops={"fp32": 0.3, "int8": 0.05})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("priced") / "tiny"
    init_example("digits", place)
    return place


def spec(folder, *sets, target="cpu"):
    return load_spec(folder / "kdcompile.toml", sets, target)


@pytest.fixture
def estimate(folder, tmp_path):
    """`estimate(target, *sets)` -> what the search leaves, of students of family `shrink`."""

    def make(target, *sets):
        step = Step("search", "1" * 24, spec(folder, *sets), {})
        return search.run(step, Store(tmp_path / "store"), target).json("estimate.json")

    return make


def test_a_speed_up_is_met_in_the_precision_that_ships(estimate):
    """int8 is slower here: a student that is twice as fast in int8 is far too narrow in fp32."""
    found = estimate(SLOW_INT8, "student.budget={speedup=2}")
    fp32, int8 = (found["student"][p]["ms"] for p in ("fp32", "int8"))
    assert fp32 < int8 / 1.5
    assert (found["precision"], found["teacher_precision"]) == ("fp32", "fp32")
    assert found["speedup"] == found["teacher"]["fp32"]["ms"] / fp32
    assert 2 <= found["speedup"] < 2.4


def test_int8_is_priced_where_it_is_the_fastest(estimate):
    fast = replace(CPU, peak_tflops={"fp32": 0.05, "int8": 0.3})
    assert estimate(fast)["precision"] == "int8"


def test_students_of_a_search_are_compared_at_it_too(estimate, monkeypatch):
    def asked_for(*given):
        raise LookupError(given[4])

    monkeypatch.setattr("kdcompile.search.driver.search_student", asked_for)
    sets = ("student.family=search", "student.budget={speedup=2}")
    with pytest.raises(LookupError, match=re.escape("('fp32', 'fp32')")):
        estimate(SLOW_INT8, *sets)


@pytest.mark.parametrize(
    ("target", "sets", "expected"),
    [
        ("cpu", (), ("int8", "fp32")),
        ("jetson", (), ("int8", "fp16", "fp32")),
        ("jetson-thor-t5000", (), ("fp16", "fp32", "fp8")),
        ("jetson-agx-xavier", ("compile.dla=0",), ("int8", "fp16")),
        ("jetson", ("quantize.precision=mixed",), ("fp16",)),
        ("jetson", ("quantize.precision=fp32",), ("fp32",)),
    ],
)
def test_what_may_ship(folder, target, sets, expected):
    assert candidate_precisions(spec(folder, *sets, target=target), load(target)) == expected


def test_fp8_may_not_ship_where_no_parser_reads_it(folder):
    old = replace(load("jetson-thor-t5000"), tensorrt="8.6")
    assert candidate_precisions(spec(folder), old) == ("fp16", "fp32")


def test_the_first_of_equals_is_the_fastest(folder):
    teacher = Network(load_teacher(spec(folder)), spec(folder).export.profile[1])
    fp32 = teacher.cost(CPU, "fp32")
    same = replace(fp32, estimate=replace(fp32.estimate, precision="fp8"))
    quick = replace(fp32, estimate=replace(fp32.estimate, ms=fp32.estimate.ms / 2))
    assert fastest([same, fp32]) is same
    assert fastest([fp32, quick]) is quick


def test_the_teacher_computes_in_what_the_target_has():
    assert paired_precision("int8", CPU.precisions) == "fp32"
    assert paired_precision("int8", load("jetson").precisions) == "fp16"
    assert paired_precision("fp32", load("jetson").precisions) == "fp32"
