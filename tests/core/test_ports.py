"""Rows that stand for samples of named tensors."""

import numpy as np
import pytest

from kdcompile.core.errors import KDError
from kdcompile.core.ports import EXACT, Port, Ports, as_row

PORTS = Ports((Port("signal", (1, 2, 3), "float32"), Port("ids", (1, 2), "int64")))
SAMPLE = {"signal": np.arange(6, dtype=np.float32).reshape(1, 2, 3), "ids": np.array([[7, 3]])}


def test_a_row_gives_the_tensors_back():
    row = PORTS.pack(SAMPLE, "a")
    assert row.dtype == np.float32
    assert row.tolist() == [[0, 1, 2, 3, 4, 5, 7, 3]]
    back = PORTS.unpack(row)
    assert {name: array.dtype.name for name, array in back.items()} == {
        "signal": "float32", "ids": "int64",
    }  # fmt: skip
    for name, array in SAMPLE.items():
        np.testing.assert_array_equal(back[name], array)
    np.testing.assert_array_equal(as_row(list(back.values())), row)
    assert (PORTS.width, PORTS.has_batch, PORTS.names) == (8, True, ("signal", "ids"))
    assert Ports.from_json(PORTS.to_json()) == PORTS == Ports.of(SAMPLE)


def test_the_first_axis_of_one_may_be_missing_and_other_arrays_are_left_out():
    given = {"signal": SAMPLE["signal"][0], "ids": SAMPLE["ids"][0], "target": np.zeros(3)}
    np.testing.assert_array_equal(PORTS.pack(given, "a"), PORTS.pack(SAMPLE, "a"))


def test_without_a_batch_axis_samples_run_alone():
    assert not Ports((Port("state", (2, 1, 8), "float32"),)).has_batch


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"ids": None}, "sample-missing", "has no 'ids'"),
        ({"ids": np.zeros((1, 3), int)}, "sample-shape", "[1, 3]"),
        ({"ids": np.zeros((1, 2))}, "sample-type", "ids is float64, the network takes int64"),
        ({"ids": np.array([[0, EXACT + 1]])}, "sample-nonfinite", "integer over"),
        ({"signal": np.full((1, 2, 3), np.nan)}, "sample-nonfinite", "NaN"),
        ({"signal": np.array([["a"] * 3] * 2)}, "sample-type", "signal is <U1"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(change, code, says):
    given = {name: array for name, array in {**SAMPLE, **change}.items() if array is not None}
    with pytest.raises(KDError) as caught:
        PORTS.pack(given, "sample 3")
    assert (caught.value.code, caught.value.where) == (code, "sample 3")
    assert says in caught.value.message


def test_the_largest_integer_that_a_row_keeps_exactly():
    row = PORTS.pack(SAMPLE | {"ids": np.array([[EXACT, 1]])}, "a")
    assert PORTS.unpack(row)["ids"].tolist() == [[EXACT, 1]]
