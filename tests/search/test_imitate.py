"""Blocks that imitate a teacher's cuts: what is measured, what it depends on, and how it runs."""

import dataclasses
import os

import pytest
import staged_ground as tasks
import torch
from staged_ground import OPTIONS, architecture, write_build
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.core.sources import sources_of
from kdcompile.core.store import Store
from kdcompile.search.predictors import block_distillation as module
from kdcompile.search.predictors import sensitivity
from kdcompile.search.predictors.block_data import (
    context_without_data,
    prepare_training_data,
    training_data,
)
from kdcompile.search.predictors.block_distillation import (
    block_error,
    block_key,
    distil_block,
    distil_blocks,
    stored_result,
    train_block,
)
from kdcompile.search.predictors.teacher_features import (
    at_size,
    nested_order,
    output_demands,
    teacher_maps,
)
from kdcompile.search.predictors.worker_pool import evaluate_all
from kdcompile.search.spaces.staged import blocks_of


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imitate")
    return folder, write_build(folder)


@pytest.fixture(scope="module")
def context(build):
    folder, load = build
    return prepare_training_data(load(), OPTIONS, Store(folder / "store"))


def _error(context, index, **settings):
    block = blocks_of(architecture(**settings))[index]
    return train_block(training_data(context), block, OPTIONS, 0)[1]["error"]


def test_a_wider_block_imitates_better_and_a_coarser_one_worse(context):
    narrow, wide = _error(context, 0, width=1), _error(context, 0, width=8)
    assert wide < 0.5 * narrow < 0.5
    assert _error(context, 0, width=8, stride=2) > 2 * wide


def test_the_teachers_own_weights_have_no_error(context):
    data = training_data(context)
    block = blocks_of(architecture(width=8))[0]
    stage = train_block(data, block, dataclasses.replace(OPTIONS, steps=1), 0)[0]
    normed, own = stage[0][0], data.teacher[0]
    with torch.no_grad():
        normed.convolution.weight.copy_(own.weight)
        normed.norm.running_mean.zero_()
        normed.norm.running_var.fill_(1 - normed.norm.eps)
        normed.norm.weight.fill_(1)
        normed.norm.bias.copy_(own.bias)
        assert block_error(data, block, stage)[0] < 1e-5
        normed.norm.weight.zero_()
        normed.norm.bias.fill_(1)  # a constant tells nothing: the mean is left
        error, deviation = block_error(data, block, stage)
    assert error == pytest.approx(1, abs=0.05)
    assert 0 < deviation < 0.1


def test_a_block_is_taught_once(context, monkeypatch):
    block = blocks_of(architecture(width=2))[1]
    assert stored_result(context, block) is None
    first = distil_block(context, block)
    monkeypatch.setattr(module, "train_block", None)  # would fail if it were called
    assert distil_block(context, block) == first == stored_result(context, block)
    assert 0 < first.error < 1.1
    assert set(first.state()) > {"1.0.convolution.weight", "1.0.norm.running_var"}


def test_a_blocks_key_knows_its_lessons_and_no_budget(build, context):
    folder, load = build
    store = Store(folder / "store")
    block, other = blocks_of(architecture())
    assert (
        prepare_training_data(load("student.budget={speedup=3.0}"), OPTIONS, store).key
        == context.key
    )
    assert prepare_training_data(load("target='h100'"), OPTIONS, store).key == context.key
    for change in ("seed=2", "export.shape=[1, 1, 32, 32]"):
        assert prepare_training_data(load(change), OPTIONS, store).key != context.key
    longer = dataclasses.replace(context, options=dataclasses.replace(OPTIONS, steps=81))
    keys = {block_key(g, b, store) for g in (context, longer) for b in (block, other)}
    assert len(keys) == 4


@pytest.mark.parametrize("name", ["cuts.py", "metric.py", "crop_augment.py"])
def test_evidence_is_made_anew_where_what_it_is_measured_with_changed(
    build, context, monkeypatch, name
):
    folder, load = build
    store = Store(folder / "store")
    assert context_without_data(load(), OPTIONS, store).key == context.key
    read = store.hasher.file
    monkeypatch.setattr(store.hasher, "file", lambda p: "new" if p.name == name else read(p))
    assert context_without_data(load(), OPTIONS, store).key != context.key


def test_a_sensitivity_is_made_anew_where_the_evaluation_changed():
    assert "kdcompile.distill.evaluate" in sources_of(sensitivity.__name__).files


def test_students_share_blocks():
    one, two = architecture(), architecture()
    two["stages"][1]["width"] = 9
    assert blocks_of(one)[0] == blocks_of(two)[0]
    assert blocks_of(one)[1] != blocks_of(two)[1]
    one["stages"][0]["down"] = "stride"  # nothing strides there
    assert blocks_of(one)[0] == blocks_of(two)[0]


def test_the_teacher_is_left_as_it_was(context):
    data = training_data(context)
    assert not any(m._forward_hooks for m in data.teacher.modules())
    assert all(p.grad is None for p in data.teacher.parameters())


def test_maps_are_the_teachers_and_nothing_behind_them_runs():
    teacher = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Linear(99, 1))
    images = torch.randn(5, 1, 8, 8)
    found = [maps for _, (maps,) in teacher_maps(teacher, ["1"], images)]
    torch.testing.assert_close(torch.cat(found), teacher[0](images).relu().detach())


def test_demands_are_the_squares_of_what_the_output_reads():
    teacher = nn.Sequential(nn.Identity(), nn.Conv2d(3, 1, 1))
    weight = teacher[1].weight.detach().flatten().double()
    (found,) = output_demands(teacher, ["0"], torch.randn(6, 3, 4, 4), seed=0)
    torch.testing.assert_close(found, torch.outer(weight, weight) * 3 / weight.square().sum())


@pytest.mark.parametrize(
    ("covariance", "demand", "order"),
    [
        ([[1, 0, 0], [0, 4, 0], [0, 0, 0.5]], [1, 1, 1], [1, 0, 2]),
        ([[1, 0, 0], [0, 4, 0], [0, 0, 0.5]], [1, 0, 1], [0, 2, 1]),
        ([[2, 2, 0], [2, 2, 0], [0, 0, 1]], [1, 1, 1], [0, 2, 1]),  # 1 is a copy of 0
    ],
)
def test_order_by_what_is_explained_of_what_is_read(covariance, demand, order):
    demand = torch.diag(torch.tensor(demand, dtype=torch.double))
    found = nested_order(torch.tensor(covariance, dtype=torch.double), demand)
    assert found.tolist() == order


def test_maps_of_another_size():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert at_size(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert at_size(maps, (4, 4)) is maps
    assert at_size(torch.full((1, 2, 4, 4), 3.0), (3, 7)).sub(3).abs().max() < 1e-6


def test_any_number_of_processes_finds_the_same(build, context):
    folder, load = build
    blocks = blocks_of(architecture(width=3))
    alone = distil_blocks(context, blocks, 1)
    apart = prepare_training_data(load(), OPTIONS, Store(folder / "another"))
    beside = distil_blocks(apart, blocks, 2)
    assert list(alone) == list(beside) == blocks
    for block in blocks:
        assert alone[block].error == beside[block].error
        states = alone[block].state(), beside[block].state()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_workers_keep_order_use_one_thread_and_tell_errors():
    assert evaluate_all(tasks.doubled, [3, 1, 2], 2, "numbers") == [6, 2, 4]
    assert evaluate_all(tasks.doubled, [], 2, "numbers") == []
    before = torch.get_num_threads()
    (found,) = evaluate_all(tasks.threads, [0], 4, "numbers")
    assert found == (1, os.getpid())
    assert torch.get_num_threads() == before
    found = evaluate_all(tasks.threads, [0, 1], 2, "numbers")
    assert {n for n, _ in found} == {1}
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_comes_back_as_itself(jobs):
    with pytest.raises(KDError) as caught:
        evaluate_all(tasks.refuses_three, [1, 3], jobs, "numbers")
    assert (caught.value.code, caught.value.fix) == ("three", "count on")


def test_a_killed_worker_is_named():
    with pytest.raises(KDError) as caught:
        evaluate_all(tasks.dies_at_three, [3, 1], 2, "numbers")
    assert caught.value.code == "worker-killed"
    assert "kept in the store" in caught.value.fix
