"""The pieces of inheriting: patches, the selection of channels, the regression behind a ReLU."""

import pytest
import torch
from torch import nn

from kdcompile.distill.inherit.importance import Reader, places
from kdcompile.distill.inherit.rows import (
    grouped_weight,
    input_rows,
    output_rows,
    sample,
    set_weight,
)
from kdcompile.distill.inherit.select import Place, Samples, explaining, most, ranking
from kdcompile.distill.inherit.solve import Gate, Solution, fit, is_dead

MODULES = [
    (nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=2), (9, 11)),
    (nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="replicate"), (5, 7)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, padding_mode="circular"), (11,)),
    (nn.Conv1d(4, 6, 2, padding="valid"), (11,)),
    (
        nn.ConvTranspose2d(6, 4, (4, 3), stride=(2, 3), padding=(1, 0), output_padding=(0, 1)),
        (5, 4),
    ),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, dilation=2, groups=2), (5, 4)),
    (nn.ConvTranspose1d(6, 4, 5, stride=3, padding=2), (7,)),
    (nn.Linear(6, 5), ()),
]


@pytest.mark.parametrize(("module", "space"), MODULES, ids=lambda v: str(v))
def test_rows_times_weight_is_the_layer(module, space):
    torch.manual_seed(0)
    linear = isinstance(module, nn.Linear)
    x = torch.randn(3, module.in_features if linear else module.in_channels, *space)
    with torch.no_grad():
        y = module(x)
    total = 3 if linear else 3 * y.shape[2:].numel()
    picks = sample(total, max(2, total // 2), seed=1)
    rows = input_rows(module, x, picks, y.shape[2:])
    weight = grouped_weight(module).flatten(2).transpose(1, 2)
    made = (rows @ weight).transpose(0, 1).flatten(1) + module.bias.detach()
    assert torch.allclose(made, output_rows(y, picks, linear), atol=1e-5)
    before = module.weight.detach().clone()
    set_weight(module, 2 * grouped_weight(module))
    assert torch.equal(module.weight.detach(), 2 * before)


def test_positions_differ_and_repeat():
    assert torch.equal(sample(100, 30, 5), sample(100, 30, 5))
    assert len(set(sample(100, 30, 5).tolist())) == 30
    assert sorted(sample(7, 30, 5).tolist()) == list(range(7))


def test_one_of_two_twins_is_enough():
    """The loudest channels are one signal three times; one of it and the quiet one say all."""
    torch.manual_seed(0)
    loud, quiet = torch.randn(2, 1000, dtype=torch.double)
    values = torch.stack([3 * loud, 3.1 * loud, 2.9 * loud, quiet])
    place = Place(torch.cov(values), torch.eye(4, dtype=torch.double))
    first, second = explaining([place], 4, keep=2, blocks=1).tolist()
    assert second == 3
    assert first in (0, 1, 2)  # any of the three says the same


def test_a_channel_that_nobody_reads_is_not_kept():
    values = torch.eye(4, dtype=torch.double)
    demand = torch.diag(torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.double))
    assert explaining([Place(values, demand)], 4, keep=2, blocks=1).tolist() == [1, 3]


def test_every_block_gives_as_many():
    place = Place(torch.diag(torch.arange(6.0).double()), torch.eye(6, dtype=torch.double))
    assert explaining([place], 6, keep=4, blocks=2).tolist() == [1, 2, 4, 5]
    assert most(torch.arange(6.0), keep=4, blocks=2).tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("blocks", [1, 3])
def test_few_samples_pick_the_channels_that_their_covariance_picks(blocks):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(24, 7, generator=generator, dtype=torch.double)
    weights = torch.randn(24, 5, generator=generator, dtype=torch.double)
    given = weights.T @ values
    few = Samples(values, given.T @ given)
    full = Place(values @ values.T, weights @ weights.T)
    kept = ranking([few], 24, 12, blocks)
    for views in ([full], [few, full]):  # of the seventh all channels explain the same
        assert ranking(views, 24, 12, blocks)[:6] == kept[:6]
    picked = set(kept[:7])  # seven explain all, then the first follow
    if blocks == 1:
        assert kept[7:] == [c for c in range(24) if c not in picked][:5]


def test_samples_are_kept_as_such_where_they_are_fewer_than_channels():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    reader = Reader("2", 0, 0, 12, 1, -1)
    crops = [torch.randn(4, 4) for _ in range(4)]
    (few,) = places(teacher, crops[:2], [reader])[0]
    (full,) = places(teacher, crops, [reader])[0]
    assert isinstance(few, Samples)
    assert few.values.shape == (12, 8)
    assert isinstance(full, Place)
    for view, used in ((few, crops[:2]), (full, crops)):
        with torch.no_grad():
            read = teacher[:2](torch.cat(used)).double()
        covariance = torch.cov(read.T, correction=0)
        weight = teacher[2].weight.detach().double()
        pursuit = view.pursuit()
        assert torch.allclose(pursuit.left(), covariance.diagonal())
        energy = ((weight.T @ weight) * covariance).sum()
        expected = (covariance * (weight.T @ weight @ covariance)).sum(0) / energy
        assert torch.allclose(pursuit.explained(), expected)


def test_no_readers_keeps_the_first():
    assert explaining([], 5, keep=2, blocks=1).tolist() == [0, 1]


def _problem(rows=2000, width=12, outputs=5, hidden=8, below=4):
    """Outputs of a wider layer, of whose inputs only some are seen; most are below 0."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, width + hidden, generator=generator)
    mix = torch.randn(1, width + hidden, outputs, generator=generator)
    return x[:, :, :width], x @ mix - below, mix[:, :width]


def _ones_gate(outputs):
    return Gate(torch.ones(1, 1, outputs), torch.zeros(1, 1, outputs))


def test_the_gated_solution_is_better_behind_the_relu():
    x, y, prior = _problem()
    gate = _ones_gate(5)
    plain, _ = fit(x, y, prior, intercept=True, gate=None)
    gated, error = fit(x, y, prior, intercept=True, gate=gate)
    assert error == gated.error(x[:, -250:], y[:, -250:], gate)
    assert gated.error(x, y, gate) < 0.97 * plain.error(x, y, gate)
    assert plain.error(x, y, None) < gated.error(x, y, None)


@pytest.mark.parametrize("below", [8, 9, 10])
def test_what_is_rarely_above_the_threshold_is_not_dead(below):
    """Every ungated fit is at 0 behind the ReLU for nearly each row, and so is the prior."""
    x, y, prior = _problem(outputs=1, below=below)
    gate = _ones_gate(1)
    dead = Solution(prior.double(), torch.full((1, 1, 1), -100.0, dtype=torch.double))
    assert is_dead(dead, x, y, gate)
    solution, _ = fit(x, y, prior, intercept=True, gate=gate)
    assert not is_dead(solution, x, y, gate)
    assert float((gate(solution(x)) > 0).float().mean()) > 0.1
    assert solution.error(x, y, gate) < min(1, dead.error(x, y, gate))


def test_held_out_rows_that_are_all_below_do_not_judge():
    x, y, prior = _problem(outputs=1, below=11)
    gate = _ones_gate(1)
    assert not gate(y[:, -250:]).any()
    solution, error = fit(x, y, prior, intercept=True, gate=gate)
    assert error == solution.error(x, y, gate) < 1


def test_the_prior_that_is_exact_stays_behind_a_gate():
    x, _, prior = _problem(outputs=1)
    solution, error = fit(x, x @ prior - 8, prior, intercept=True, gate=_ones_gate(1))
    assert torch.allclose(solution.weight.float(), prior, atol=1e-3)
    assert error < 1e-3


def test_outputs_are_clamped_where_the_gate_is_closed():
    sign, threshold = torch.tensor([[[-1.0, 1.0, 0.0]]]), torch.tensor([[[0.5, 1.0, 0.0]]])
    y = torch.tensor([[[0.0, 0.0, -3.0], [2.0, 2.0, 3.0]]])
    assert Gate(sign, threshold).clamped(y).tolist() == [[[0.0, 1.0, -3.0], [0.5, 2.0, 3.0]]]


def test_a_gate_can_be_turned_moved_or_open():
    sign, threshold = torch.tensor([[[-1.0, 1.0, 0.0]]]), torch.tensor([[[0.5, 1.0, 0.0]]])
    gate = Gate(sign, threshold)
    y = torch.tensor([[[0.0, 0.0, -3.0], [2.0, 2.0, 3.0]]])
    assert gate(y).tolist() == [[[0.5, 0.0, -3.0], [0.0, 1.0, 3.0]]]
    predicted = torch.tensor([[[1.0, 5.0, 1.0], [3.0, 5.0, 1.0]]])
    assert gate.target(y, predicted).tolist() == [[[0.0, 1.0, -3.0], [3.0, 2.0, 3.0]]]


def test_fewer_rows_than_unknowns_stay_near_the_prior():
    x, y, prior = _problem()
    few, _ = fit(x[:, :8], y[:, :8], prior, intercept=True, gate=None)
    assert few.error(x, y, None) < 1.3
    assert torch.isfinite(few.weight).all()


def test_without_an_intercept_nothing_is_shifted():
    x, y, prior = _problem()
    solution, _ = fit(x, y, prior, intercept=False, gate=None)
    assert not solution.bias.any()


def test_constant_inputs_and_outputs():
    x, y = torch.ones(2, 50, 3), torch.full((2, 50, 4), 7.0)
    solution, error = fit(x, y, torch.zeros(2, 3, 4), intercept=True, gate=None)
    assert torch.allclose(solution(x), y)
    assert error < 1e-3


def test_few_rows_change_no_weight_that_they_do_not_see():
    """Rounding of the moments is not blown up where the inputs are far fewer than the weights."""
    torch.manual_seed(0)
    x = torch.randn(1, 24, 3) @ torch.randn(3, 512)
    y = x @ torch.randn(512, 4)
    solution, _ = fit(x, y, torch.zeros(1, 512, 4), intercept=True, gate=None)
    weight = solution.weight[0]
    _, _, seen = torch.linalg.svd((x[0] - x[0].mean(0)).double(), full_matrices=False)
    unseen = weight - seen[:3].T @ (seen[:3] @ weight)
    assert unseen.norm() < 1e-3 * weight.norm()
