"""Photos without labels in training: mixed batches, whose labels are those of the others alone."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_recipes
import torch
from tiny_training import photos

from kdcompile.core.errors import KDError
from kdcompile.distill.objective import DensityObjective, Objective
from kdcompile.distill.phase import StageRun
from kdcompile.distill.registry import find_recipe, recipes, refuse_recipes
from kdcompile.distill.schedule import stage_plans
from kdcompile.distill.train import Trainer
from kdcompile.distill.unlabelled import pool_crops, uses_pool

KINDS = ["kd", "skt", "crd", "nd", "mixup", "hard", "ghnd", "m2mkd", "reliability+at"]


def _with_pool(trainer, number=5):
    """The same training with a pool of photos that have neither points nor labels."""
    nothing = np.zeros((0, 2), np.float32)
    pool = [replace(photo, points=nothing, label=None) for photo in photos(number, 9)]
    setting = trainer.setting
    return Trainer(
        trainer._spec, setting.teacher, setting.student, setting.photos, trainer._val,
        setting.work, pool=pool,
    )  # fmt: skip


def _run(trainer, number=6):
    return StageRun(trainer.setting, stage_plans(trainer._options)[0], 0, number)


def test_recipes_without_a_term_for_them_are_few():
    found = {name for name in recipes() if not find_recipe(name).learns_unlabelled()}
    assert found == {"none", "tf-kd", "mixture", "partitioned", "reliability"}


@pytest.mark.parametrize("name", KINDS)
def test_recipes_trains_on_them(name, tmp_path):
    trainer = _with_pool(tiny_recipes.trainer(name, tmp_path, steps=2))
    before = [p.clone() for p in trainer.student.parameters()]
    state = trainer.run()
    assert state.stages["distill"]["unlabelled"] == {"photos": 5, "crops_of_a_batch": 2}
    assert trainer.n_unlabelled == 5
    now = list(trainer.student.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_labels_count_for_their_own_crops_and_the_teacher_for_all(tmp_path):
    run = _run(_with_pool(tiny_recipes.trainer("kd", tmp_path)))
    batch = run.batch(0)
    assert len(batch.images) == 4
    assert batch.labelled == len(batch.photo) == 2
    seen, trainable = run.see(batch), run.trainable
    whole = trainable.recipe.terms(trainable.inputs(batch.images, batch.target, seen))
    own = batch.with_labels()
    student, teacher = run.setting.student(batch.images), run.setting.teacher(batch.images)
    scale = run.objective.squared
    known = (student[:2] - own.target).square().mean() / scale
    torch.testing.assert_close(whole["hard"], known)
    torch.testing.assert_close(whole["soft"], (student - teacher).square().mean() / scale)
    torch.testing.assert_close(batch.images[2:], run.pool.batch(0).images)


def test_classes_and_mixed_images_too(tmp_path):
    run = _run(_with_pool(tiny_recipes.trainer("mixup", tmp_path, **{"task.kind": '"counting"'})))
    assert run.pool.crops == 2
    run = _run(_with_pool(tiny_recipes.trainer("logit-std", tmp_path)))
    batch = run.batch(0)
    inputs = run.trainable.inputs(batch.images, batch.target, run.see(batch))
    changed = replace(
        inputs, teacher=inputs.teacher + torch.eye(4, 3) * (torch.arange(4) > 1)[:, None]
    )
    first, second = (run.recipe.terms(given)["logitstd"].detach() for given in (inputs, changed))
    assert float(first) != float(second)


def test_recurring_crops_are_cached_with_the_same_result(tmp_path):
    def last(megabytes, folder):
        made = tiny_recipes.trainer(
            "at", tmp_path, work=folder,
            **{"distill.views": 2, "distill.teacher_cache_mb": megabytes},
        )  # fmt: skip
        trainer = _with_pool(made)
        state = trainer.run()
        return state.stages["distill"]["teacher_cache"], trainer.student.state_dict()

    (cached, a), (none, b) = last(100, "a"), last(0, "b")
    assert cached.endswith("MB")
    assert none.startswith("none")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "share", "crops"),
    [(16, 0.5, 8), (16, 0.01, 1), (4, 0.99, 3), (1, 0.5, 0), (16, 0.0, 0)],
)
def test_the_share_of_a_batch(batch, share, crops, tmp_path):
    options = tiny_recipes.trainer("kd", tmp_path)._options
    assert pool_crops(options.model_copy(update={"batch": batch, "unlabelled": share})) == crops


def test_labels_alone_read_no_pool(tmp_path):
    trainer = _with_pool(tiny_recipes.trainer("none", tmp_path))
    assert _run(trainer).pool is None
    assert trainer.n_unlabelled == 0


@pytest.mark.parametrize(
    ("recipe", "share", "used"), [("kd", 0.5, True), ("none", 0.5, False), ("kd", 0, False)]
)
def test_when_the_data_s_pool_is_read(recipe, share, used, tmp_path):
    sets = {"data.unlabelled": '"more"', "distill.unlabelled": share}
    assert uses_pool(tiny_recipes.trainer(recipe, tmp_path, **sets)._spec) is used
    assert not uses_pool(tiny_recipes.trainer(recipe, tmp_path)._spec)


def test_a_batch_of_one_cannot_be_shared(tmp_path):
    spec = tiny_recipes.trainer("kd", tmp_path, batch=1, **{"data.unlabelled": '"more"'})._spec
    with pytest.raises(KDError, match="cannot be shared") as error:
        refuse_recipes(spec)
    assert error.value.code == "pool-batch"


def test_losses_without_a_soft_term_of_their_own_are_refused(tmp_path, monkeypatch):
    spec = tiny_recipes.trainer("kd", tmp_path, **{"data.unlabelled": '"more"'})._spec
    refuse_recipes(spec)
    monkeypatch.setattr(DensityObjective, "soft", Objective.soft)
    with pytest.raises(KDError, match="no soft term") as error:
        refuse_recipes(spec)
    assert error.value.code == "pool-objective"
