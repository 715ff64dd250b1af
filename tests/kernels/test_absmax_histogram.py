"""Counts of magnitudes against numpy, to the last one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcompile.calib.histogram import Histogram
from kdcompile.kernels import _tune
from kdcompile.kernels import absmax_histogram as module
from kdcompile.kernels._runtime import using
from kdcompile.kernels.absmax_histogram import PRIVATE_CONFIGS, absmax_histogram

SHAPES = [(1,), (), (2049,), (7, 13), (2, 3, 5, 7), (1, 65, 9, 1), (3, 2, 40, 41), (2, 3, 4, 5, 6)]
CHOICES = ("triton", "reference")


def _draw(shape, dtype=torch.float32, device="cpu", seed=0):
    """A third of zeros, as behind a ReLU."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(values > -0.4, values, 0).to(dtype).to(device)


def _numpy(values, limit, bins):
    """Largest magnitude and counts of one array by numpy, as calib/histogram.py bins."""
    magnitudes = np.abs(values.float().cpu().numpy().reshape(-1))
    factor = np.float32(bins / float(limit))
    places = np.minimum(magnitudes * factor, np.float32(bins - 1)).astype(np.intp)
    return magnitudes.max(), np.bincount(places, minlength=bins)


def _check(values, limit, bins=4096, axis=None):
    found = {}
    for choice in CHOICES:
        with using(choice):
            found[choice] = absmax_histogram(values, limit, bins, axis=axis)
    absmax, counts = found["triton"]
    assert absmax.dtype == torch.float32
    assert counts.dtype == torch.int64
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))
    rows = [values] if axis is None else values.unbind(1)
    limits = limit.expand(len(rows)) if limit.dim() == 0 else limit
    shape = () if axis is None else (len(rows),)
    assert absmax.shape == shape
    assert counts.shape == (*shape, bins)
    for row, own, largest, histogram in zip(
        rows, limits, absmax.reshape(-1), counts.reshape(-1, bins), strict=True
    ):
        expected = _numpy(row, own, bins)
        assert float(largest) == expected[0]
        np.testing.assert_array_equal(histogram.cpu().numpy(), expected[1])


@pytest.mark.parametrize("bins", [4096, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts(shape, bins, dtype, device):
    _check(_draw(shape, dtype, device), torch.tensor(1.7, device=device), bins)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 1], ids=str)
def test_counts_by_channel(shape, last, dtype, device):
    values = _draw(shape, dtype, device)
    if last and len(shape) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    limit = torch.linspace(0.3, 4.0, shape[1], device=device)
    _check(values, limit, 128, axis=1)
    _check(values, limit[0], 4096, axis=1)


@pytest.mark.parametrize("bins", [3, 100, 4999])
def test_borders_of_bins_are_rounded_once(bins, device):
    """Bins / limit by a reciprocal is rounded twice: values on the borders would change bins."""
    limit = torch.linspace(0.5, 9, 64, device=device)
    places = torch.arange(1, bins + 1, device=device)[None, :, None]
    _check((places * (limit / bins)).movedim(-1, 1), limit, bins, axis=1)


@pytest.mark.parametrize("choice", range(len(PRIVATE_CONFIGS)))
def test_every_configuration(choice, device):
    values = _draw((2, 70, 9, 31), device=device)
    with _tune.config(choice):
        for maps in (values, values.contiguous(memory_format=torch.channels_last)):
            _check(maps, torch.tensor(2.0, device=device))
            _check(maps, torch.linspace(1, 3, 70, device=device), 64, axis=1)


@pytest.mark.parametrize("last", [False, True])
def test_few_programs_count_many_tiles_of_a_channel(last, device, monkeypatch):
    """Two programs a channel, and tiles that the maps do not fill."""
    config = {"CELLS": 1024, "PROGRAMS": 4, "num_warps": 8, "num_stages": 1}
    monkeypatch.setattr(module, "PRIVATE_CONFIGS", [config])
    values = _draw((3, 2, 41, 101), torch.float16, device)
    if last:
        values = values.contiguous(memory_format=torch.channels_last)
    _check(values, torch.tensor([0.7, 2.1], device=device), 100, axis=1)


def test_counts_of_many_programs_are_added(device, monkeypatch):
    """More rows of counters than are added at once, and a last block of bins that is not full."""
    config = {"CELLS": 256, "PROGRAMS": 150, "num_warps": 8, "num_stages": 1}
    monkeypatch.setattr(module, "PRIVATE_CONFIGS", [config])
    _check(_draw(150 * 256 - 9, device=device), torch.tensor(2.0, device=device), 333)


@pytest.mark.parametrize("limit", [4.0, 0.0, float("nan")])
def test_nan_and_infinity_among_many(limit, device):
    """A channel with a NaN, one with an infinity, and one with neither."""
    values = torch.ones(1, 3, 4097, device=device)
    values[0, 0, 4096], values[0, 1, 9], values[0, 2, 7] = float("nan"), -float("inf"), -3.0
    with using("triton"):
        absmax, counts = absmax_histogram(values, torch.full((), limit).to(device), 4, axis=1)
        whole, _ = absmax_histogram(values, torch.full((), limit).to(device), 4)
    assert absmax.isnan().tolist() == [True, False, False]
    assert absmax[1:].tolist() == [float("inf"), 3.0]
    assert whole.isnan()
    full = limit == 4.0
    expected = [[0, 4096, 0, 0], [0, 4096, 0, 1], [0, 4096, 0, 1]]
    assert counts.tolist() == (expected if full else [[n, 0, 0, 0] for n in (4096, 4097, 4097)])


@settings(max_examples=20)
@given(
    shape=st.tuples(*[st.integers(1, top) for top in (3, 9, 20, 20)]),
    bins=st.integers(1, 5000), limit=st.floats(2**-10, 9, width=32), seed=st.integers(0, 99),
    axis=st.sampled_from([None, 1]),
)  # fmt: skip
def test_any_shape(shape, bins, limit, seed, axis):
    _check(_draw(shape, seed=seed), torch.tensor(limit), bins, axis)


def test_strided_values(device):
    values = _draw((6, 8, 10, 12), device=device)[::2, 1:5, :, ::3]
    for axis in (None, 1):
        _check(values, torch.tensor(1.0, device=device), 50, axis)


def test_the_histogram_of_the_calibration(device):
    values = _draw((2, 3, 40, 41), device=device)
    histogram = Histogram()
    histogram.add(values.cpu().numpy())
    with using("triton"):
        absmax, counts = absmax_histogram(values, torch.tensor(histogram.span, device=device))
    assert float(absmax) == histogram.amax
    np.testing.assert_array_equal(counts.cpu().numpy(), histogram.counts)


@pytest.mark.parametrize("choice", CHOICES)
def test_edges_of_bins(choice, device):
    """A value on the edge belongs to the upper bin, and the limit to the last."""
    values = torch.tensor([0.0, -0.0, 0.25, -0.25, 0.5, 0.9999, 1.0, -7.0], device=device)
    with using(choice):
        absmax, counts = absmax_histogram(values, torch.ones((), device=device), 4)
        assert counts.tolist() == [2, 2, 1, 3]
        assert float(absmax) == 7.0
        _, counts = absmax_histogram(values, torch.ones((), device=device), 1)
        assert counts.tolist() == [8]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(choice, dtype, device):
    infinity, nan = float("inf"), float("nan")
    values = torch.tensor([[1.0, 2.0, -infinity], [0.1, 3.0, nan]], device=device).to(dtype)
    limit = torch.full((), 4.0, device=device)
    with using(choice):
        absmax, counts = absmax_histogram(values.T, limit, 4, axis=1)
        assert absmax.isinf().tolist() == [True, False]
        assert absmax.isnan().tolist() == [False, True]
        assert counts.tolist() == [[0, 1, 1, 1], [1, 0, 0, 1]]
        absmax, counts = absmax_histogram(values, limit, 4)
        assert absmax.isnan()
        assert counts.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("limit", [0.0, -1.0, 1e-36, float("inf"), float("nan")])
def test_limits_without_bins(choice, limit, device):
    values = torch.tensor([0.0, 2.0, float("inf"), float("nan")], device=device)
    with using(choice):
        _, counts = absmax_histogram(values, torch.tensor(limit, device=device), 100)
    assert counts.tolist() == [3] + [0] * 99


def test_zeros_as_the_calibration_counts_them(device):
    zeros = torch.zeros(5000, device=device)
    histogram = Histogram()
    histogram.add(zeros.cpu().numpy())
    for choice in CHOICES:
        with using(choice):
            absmax, counts = absmax_histogram(zeros, torch.tensor(histogram.span, device=device))
        assert float(absmax) == 0
        np.testing.assert_array_equal(counts.cpu().numpy(), histogram.counts)


@pytest.mark.parametrize("choice", CHOICES)
def test_no_values(choice, device):
    with using(choice):
        for axis, shape in ((None, ()), (1, (3,))):
            values = torch.zeros(0, 3, 4, device=device)
            absmax, counts = absmax_histogram(values, torch.ones((), device=device), 9, axis=axis)
            assert absmax.shape == shape
            assert counts.shape == (*shape, 9)
            assert not absmax.any()
            assert not counts.any()


def test_compiled_autocast_and_twice(device):
    values, limit = _draw((2, 5, 9, 8), device=device).requires_grad_(), torch.ones(5).to(device)

    def run(x):
        return absmax_histogram(x, limit, 64, axis=1)

    with using("triton"):
        expected = run(values)
        assert not any(t.requires_grad for t in expected)
        traced = torch.compile(run, backend="aot_eager", fullgraph=True)
        with torch.autocast(device.type, torch.bfloat16):
            under_autocast = run(values)
        for found in (run(values), traced(values), under_autocast):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


ONES, LIMIT = torch.ones(2, 3), torch.ones(())


@pytest.mark.parametrize(
    ("values", "limit", "options", "problem"),
    [
        (ONES, LIMIT, {"axis": 0}, r"axis is 0, values \(2, 3\)"),
        (ONES[0], LIMIT, {"axis": 1}, r"axis is 1, values \(3,\)"),
        (ONES.long(), LIMIT, {}, "values are torch.int64"),
        (ONES, LIMIT.expand(3), {}, r"limit is \(3,\) .* values \(2, 3\) need \(\) torch"),
        (ONES, LIMIT.expand(2), {"axis": 1}, r"limit is \(2,\) .* need \(\) or \(3,\)"),
        (ONES, LIMIT.double(), {}, r"limit is \(\) torch.float64"),
        (ONES, LIMIT.to("meta"), {}, "values on cpu, limit on meta"),
        (ONES, LIMIT, {"bins": 0}, "bins is 0"),
        (ONES, LIMIT, {"bins": 1 << 21}, "from 1 to 1048576"),
    ],
)
def test_what_does_not_fit(values, limit, options, problem):
    with pytest.raises(ValueError, match=problem):
        absmax_histogram(values, limit, **options)
