"""Students put together from blocks, distilled for a while, and what that says of the others."""

import dataclasses

import numpy as np
import pytest
import torch
from staged_ground import OPTIONS, architecture, write_build

from kdcompile.config.distill import DistillStage
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.models.factory import load_teacher, read_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.predictors import short_distillation
from kdcompile.search.predictors.assemble import WEIGHTS, assemble, assemble_weights
from kdcompile.search.predictors.block_data import prepare_training_data, training_data
from kdcompile.search.predictors.block_distillation import distil_block
from kdcompile.search.predictors.sensitivity import ExpectedLoss
from kdcompile.search.predictors.short_distillation import (
    Finalist,
    distil,
    fit_correction,
    shorten_training,
)
from kdcompile.search.spaces.pruned import architectures
from kdcompile.search.spaces.staged import blocks_of


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finalists")
    load = write_build(folder)
    return load, prepare_training_data(load(), OPTIONS, Store(folder / "store"))


def _output_error(student, data, read=lambda output: output):
    with torch.no_grad():
        asked = read(data.teacher(data.held))
        wrong = (read(student.eval()(data.held)) - asked).square().sum()
    return float(wrong / (asked - asked.mean(0)).square().sum())


@pytest.mark.parametrize("block", ["conv", "repvgg"])
def test_an_assembled_student_starts_near_the_teacher(build, block):
    _, context = build
    data, design = training_data(context), architecture(width=6, block=block)
    made = assemble(context, design)
    student = student_from_architecture(data.teacher, design, context.spec.folder)
    untrained = _output_error(student, data)
    student.load_state_dict(read_weights(made.file(WEIGHTS))[0])
    error = _output_error(student, data)
    assert error == pytest.approx(made.meta["output_error"], rel=1e-4)
    assert error < 0.4 < 0.9 < untrained
    assert assemble(context, design).path == made.path


def test_a_student_of_fewer_pixels_keeps_the_count(build):
    """At half of the teacher's output resolution single squares blur, and their sum stays."""
    _, context = build
    data, design = training_data(context), architecture(width=6, stride=2)
    student = student_from_architecture(data.teacher, design, context.spec.folder)
    student.load_state_dict(read_weights(assemble(context, design).file(WEIGHTS))[0])
    assert _output_error(student, data, lambda output: output.sum((1, 2, 3))) < 0.5


def test_a_pooled_head_is_solved_too(build):
    _, context = build
    data = training_data(context)
    pooled = torch.nn.Sequential(data.teacher, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    data = dataclasses.replace(data, teacher=pooled, cuts=[
        dataclasses.replace(cut, name=f"0.{cut.name}") for cut in data.cuts
    ])  # fmt: skip
    design = architecture(width=6) | {"head": "pooled"}
    student = student_from_architecture(pooled, design, context.spec.folder)
    results = [distil_block(context, block) for block in blocks_of(design)]
    error = assemble_weights(student, results, data, OPTIONS, 0)
    assert error < 0.5


@pytest.mark.parametrize(
    ("change", "code"),
    [({"family": "shrink"}, "assemble-family"), ({"stages": []}, "assemble-stages")],
)
def test_what_cannot_be_put_together_is_refused(build, change, code):
    with pytest.raises(KDError) as caught:
        assemble(build[1], architecture() | change)
    assert caught.value.code == code
    assert "staged" in caught.value.fix or "2 stages" in caught.value.fix


def test_finalists_are_distilled_once(build, monkeypatch):
    _, context = build
    designs = [architecture(width=6), architecture(width=2)]
    first = distil(context, designs, steps=8, jobs=1)
    assert [dict(f.architecture) for f in first] == designs
    for found in first:
        assert found.steps == 8
        assert found.value <= found.start  # the start is a candidate too
        assert found.increase_sd > 0
        assert read_weights(found.path)[1]["architecture"]
    monkeypatch.setattr(short_distillation, "_build", None)
    assert distil(context, designs, steps=8, jobs=1) == first
    assert not list((context.root / "work").glob("finalist-*"))


def test_a_student_of_the_teachers_layers_inherits_its_start(build):
    load, context = build
    teacher = load_teacher(load())
    designs = architectures(teacher, (1, 1, 16, 16), 1, 0, (0.75,))
    (found,) = distil(context, designs, steps=2, jobs=1)
    assert found.start < 0.8  # a constant errs by about 0.9
    assert found.value <= found.start


def test_a_student_that_inherits_nothing_starts_untrained(build):
    load, context = build
    design = architecture(width=6)
    fresh = prepare_training_data(load("student.init=random"), OPTIONS, Store(context.root))
    assert fresh.key == context.key
    (trained,), (fresh_start,) = (distil(g, [design], steps=2, jobs=1) for g in (context, fresh))
    assert trained.start < 0.8 * fresh_start.start


def test_a_training_that_breaks_down_leaves_the_others(build, monkeypatch):
    _, context = build
    designs = [architecture(width=6), architecture(width=2)]
    real = short_distillation._build

    def breaks_down(context, steps, architecture, *folders):
        if architecture == designs[0]:
            raise KDError("loss-nonfinite", "the loss is nan", where="step 1", fix="lower it")
        return real(context, steps, architecture, *folders)

    monkeypatch.setattr(short_distillation, "_build", breaks_down)
    (left,) = distil(context, designs, steps=3, jobs=1)
    assert left.architecture == designs[1]
    with pytest.raises(KDError) as refused:
        distil(context, designs[:1], steps=3, jobs=1)
    assert refused.value.code == "loss-nonfinite"


def test_a_short_training_keeps_the_proportions_of_the_long_one(build):
    load, _ = build
    spec = load()
    stages = [DistillStage(name="a", steps=30), DistillStage(name="b", steps=90)]
    long = spec.model_copy(
        update={"distill": spec.distill.model_copy(update={"steps": None, "stages": stages})}
    )
    short = shorten_training(long.at(spec.path), 8)
    assert short.distill.steps == 8
    assert [stage.share for stage in short.distill.stages] == [0.25, 0.75]
    assert short.folder == spec.folder


def _measured(increases, sd=0.0):
    return [Finalist({}, y, sd, 0.0, 0.0, 1, 1.0, None) for y in increases]


def test_expectations_that_came_true_stay():
    hopes = [ExpectedLoss(x, 0.2) for x in (1.0, 2.0, 3.0)]
    correction = fit_correction(hopes, _measured([1.0, 2.0, 3.0]))
    for hope in hopes:
        found = correction(hope)
        assert found.mean == pytest.approx(hope.mean, abs=0.02)
        assert found.sd >= hope.sd


def test_a_power_law_is_found_where_there_is_one():
    hopes = [ExpectedLoss(float(x), 0.01) for x in np.geomspace(0.5, 20, 12)]
    correction = fit_correction(hopes, _measured([0.2 * h.mean**0.8 for h in hopes], 0.001))
    assert correction.mean == pytest.approx((np.log(0.2), 0.8), abs=0.05)
    assert correction(ExpectedLoss(4.0, 0.01)).mean == pytest.approx(0.2 * 4**0.8, rel=0.05)
    assert correction(ExpectedLoss(1e-3, 1e-6)).mean > 0


def test_a_student_as_good_as_its_teacher_is_no_number_below_none():
    correction = fit_correction(
        [ExpectedLoss(2.0, 0.2), ExpectedLoss(1.0, 0.1)], _measured([0.3, -0.1], 0.05)
    )
    for mean in (1e-3, 1.0, 50.0):
        assert 0 < correction(ExpectedLoss(mean, 0.1)).mean < 50


def test_no_difference_on_few_photos_is_not_taken_for_none_at_all():
    hopes = [ExpectedLoss(0.2, 0.05), ExpectedLoss(0.4, 0.1), ExpectedLoss(0.3, 0.1)]
    measured = [*_measured([0.1, 0.2], 0.02), *_measured([0.0])]  # the last: on no photo
    correction = fit_correction(hopes, measured)
    for mean in (0.1, 0.2, 0.4):
        assert 0.01 * mean < correction(ExpectedLoss(mean, 0.05)).mean < mean


def test_one_finalist_corrects_and_leaves_doubt():
    correction = fit_correction([ExpectedLoss(4.0, 0.4)], _measured([1.0], 0.05))
    assert correction(ExpectedLoss(4.0, 0.4)).mean == pytest.approx(1.0, abs=0.1)
    assert correction(ExpectedLoss(8.0, 0.4)).sd > correction(ExpectedLoss(4.0, 0.4)).sd
    assert fit_correction([], [])(ExpectedLoss(4.0, 0.4)) == ExpectedLoss(4.0, 0.4)
