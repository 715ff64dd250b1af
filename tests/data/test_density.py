"""The mass of a density map is the number of its points, wherever they lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdcompile.data.targets import density_maps

coordinate = st.one_of(st.sampled_from([0.0, 63.999]), st.floats(0, 63.5, width=32))


@given(
    points=st.lists(st.tuples(coordinate, coordinate), min_size=0, max_size=40),
    stride=st.sampled_from([1, 4, 8]),
    sigma=st.floats(0.2, 6),
)
def test_mass_is_the_number_of_points(points, stride, sigma):
    padded = torch.zeros(1, max(1, len(points)), 2)
    mask = torch.zeros(1, max(1, len(points)), dtype=torch.bool)
    if points:
        padded[0], mask[0] = torch.tensor(points), True
    size = (64 // stride, 64 // stride)
    maps = density_maps(padded, mask, size, stride, sigma)
    assert maps.shape == (1, 1, *size)
    assert float(maps.min()) >= 0
    assert float(maps.double().sum()) == pytest.approx(len(points), abs=1e-4 * max(1, len(points)))


def test_a_point_peaks_in_its_own_cell_and_x_is_the_column():
    maps = density_maps(
        torch.tensor([[[50.0, 9.0]]]), torch.ones(1, 1, dtype=torch.bool), (8, 8), 8, 1.0
    )
    assert divmod(int(maps.argmax()), 8) == (1, 6)


def test_padding_of_a_batch_counts_nothing():
    points = torch.zeros(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    sums = density_maps(points, mask, (4, 5), 4, 0.7).flatten(1).sum(1)
    assert sums.tolist() == pytest.approx([3.0, 1.0])


def test_lower_precision_around_costs_no_mass():
    """Neither autocast nor a lower precision of products, which stays as the caller has it."""
    points = torch.rand(2, 300, 2) * 64
    mask = torch.ones(2, 300, dtype=torch.bool)
    plain = density_maps(points, mask, (16, 16), 4, 1.0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = density_maps(points, mask, (16, 16), 4, 1.0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, plain)
