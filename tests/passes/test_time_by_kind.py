"""Where the predicted time goes, by kind of kernel and by what limits it."""

import pytest

from kdcompile.passes.time_by_kind import time_by_kind


def part(kind, bound, ms):
    return {"kind": kind, "bound": bound, "ms": ms, "name": "n", "nodes": [], "known": True}


ESTIMATE = {
    "teacher": {"fp16": {"parts": [part("conv", "memory", 1.0), part("pool", "memory", 0.5)]}},
    "student": {
        "macs": 3,
        "int8": {"parts": [part("pool", "launch", 0.1), *[part("conv", "memory", 0.2)] * 2]},
    },
}


def test_kernels_of_a_kind_and_bound_are_one_row_the_longest_first():
    found = time_by_kind(ESTIMATE, "int8")
    assert found["evidence"] == "predicted"
    assert found["student"] == [
        {"kind": "conv", "bound": "memory", "ms": pytest.approx(0.4), "kernels": 2},
        {"kind": "pool", "bound": "launch", "ms": 0.1, "kernels": 1},
    ]
    assert [row["ms"] for row in found["teacher"]] == [1.0, 0.5]


def test_without_an_estimate_of_both_there_is_none():
    assert time_by_kind(ESTIMATE, "fp16") is None
    assert time_by_kind({**ESTIMATE, "teacher": {}}, "int8") is None


def test_measured_latencies_have_no_kernels():
    measured = {"teacher": {"fp32": {"ms": 2.0}}, "student": {"fp32": {"ms": 1.0}}}
    assert time_by_kind(measured, "fp32") is None
