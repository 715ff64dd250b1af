"""Finalists of a search: distilled for a short time, once, each from its start."""

import numpy as np
import pytest
from staged_ground import architecture, write_build

from kdcompile.config.distill import DistillStage
from kdcompile.core.errors import KDError
from kdcompile.core.store import Store
from kdcompile.distill.shortened import paired_increase, shorten_training
from kdcompile.models.factory import load_teacher
from kdcompile.models.weights import read_weights
from kdcompile.search import short_distillation
from kdcompile.search.short_distillation import distil
from kdcompile.search.spaces.pruned import architectures
from kdcompile.tasks.task import find_task


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finalists")
    return write_build(folder), Store(folder / "store")


def test_finalists_are_distilled_once(build, monkeypatch):
    load, store = build
    designs = [architecture(width=6), architecture(width=2)]
    first = distil(load(), store, designs, 8)
    assert [dict(f.architecture) for f in first] == designs
    for found in first:
        assert found.steps == 8
        assert found.value <= found.start  # the start is a candidate too
        assert found.increase_sd > 0
        assert read_weights(found.path)[1]["architecture"]
    monkeypatch.setattr(short_distillation, "_build", None)
    assert distil(load(), store, designs, 8) == first
    assert not list((store.root / "work").glob("finalist-*"))


def test_a_student_of_the_teachers_layers_inherits_its_start(build):
    load, store = build
    teacher = load_teacher(load())
    designs = architectures(teacher, (1, 1, 16, 16), 1, 0, (0.75,))
    (found,) = distil(load(), store, designs, 2)
    assert found.start < 0.8  # a constant errs by about 0.9
    assert found.value <= found.start


def test_a_training_that_breaks_down_leaves_the_others(build, monkeypatch):
    load, store = build
    designs = [architecture(width=6), architecture(width=2)]
    real = short_distillation._build

    def breaks_down(spec, steps, architecture, *folders):
        if architecture == designs[0]:
            raise KDError("loss-nonfinite", "the loss is nan", where="step 1", fix="lower it")
        return real(spec, steps, architecture, *folders)

    monkeypatch.setattr(short_distillation, "_build", breaks_down)
    (left,) = distil(load(), store, designs, 3)
    assert left.architecture == designs[1]
    with pytest.raises(KDError) as refused:
        distil(load(), store, designs[:1], 3)
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


def test_the_increase_is_paired():
    task = find_task("counting")
    whole, worse = np.array([1.0, -2, 3, -4]), np.array([2.0, -3, 4, -5])
    increase, sd = paired_increase(task, whole, worse, 0)
    assert increase == pytest.approx(1)
    assert sd == pytest.approx(0, abs=1e-12)  # every photo is worse by the same
    assert paired_increase(task, whole, worse[::-1], 0)[1] > 0.5


def test_no_rate_is_surer_than_one_photo():
    task, right = find_task("classification"), np.zeros(20)
    assert paired_increase(task, right, right, 0) == (0, 1 / 20)
    wrong = np.arange(20) < 10.0
    assert paired_increase(task, right, wrong.astype(float), 0)[1] == pytest.approx(0.11, abs=0.02)
