"""The kernel counts what numpy counts, to the last one; without a GPU in Triton's interpreter."""

import numpy as np
import pytest
import torch

from kdcompile.calib import collect as counting
from kdcompile.calib.collect import NUMPY, Counting, TritonCounts, best_counting
from kdcompile.calib.histogram import Histogram, numpy_counts
from kdcompile.kernels import forget, ran
from kdcompile.kernels._runtime import using

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def relu(*shape: int, seed: int = 0) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).standard_normal(shape, np.float32), 0)


@pytest.mark.parametrize("span", [0.0, 2.0, 4.0, 2.0**-100, 2.0**127])
def test_counts_are_numpys(span: float) -> None:
    values = relu(1, 3, 41, 30) * np.float32(1 if span < 8 else 1e37)
    with using("triton"):
        found = TritonCounts(DEVICE)(values, span)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, numpy_counts(values, span))


def test_histograms_are_equal_while_the_span_grows() -> None:
    kernel, numpy = Histogram(), Histogram()
    forget()
    with using("triton"):
        for i in range(4):
            values = relu(1, 2, 33, 17, seed=i) * np.float32(1.9**i)
            values.flags.writeable = False  # as ONNX Runtime may give them
            kernel.add(values, TritonCounts(DEVICE))
            numpy.add(values)
    assert ran() == {"absmax_histogram": "triton"}
    assert (kernel.span, kernel.minimum, kernel.maximum) == (
        numpy.span, numpy.minimum, numpy.maximum,
    )  # fmt: skip
    np.testing.assert_array_equal(kernel.counts, numpy.counts)


def test_numpy_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_counting() is NUMPY
    monkeypatch.setattr(counting, "_has_driver", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_counting() is NUMPY


def test_the_kernel_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = best_counting()
    assert isinstance(found, Counting)
    assert found.name == "triton"
    assert isinstance(found.counter, TritonCounts)
    monkeypatch.setattr("kdcompile.kernels._runtime.triton", None)
    assert best_counting() is NUMPY
