"""Teacher outputs of recurring crops: equal to the teacher, bounded, kept, refused."""

from dataclasses import replace

import pytest
import torch
from tiny_training import trainer

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.distill.recipes.kd import OutputTransfer
from kdcompile.distill.teacher_cache import cache_problem, network_digest


def _run(spec, work, *sets):
    training = trainer(spec("distill.steps=9", "distill.views=2", *sets), work)
    return training, training._enter(0, training._plans[0], 9, 0)


@pytest.mark.parametrize("recipe", ["kd", "skt"])
def test_what_it_gives_is_what_the_teacher_says(spec, tmp_path, recipe):
    _, run = _run(spec, tmp_path / "work", f"distill.recipe={recipe}")
    assert run.cache is not None
    for step in (0, 4, 8):
        run.load(step)
        output, maps = run.cache.read(run._index)
        expected, features = run.look(run.sampler.batch(step).images)
        assert torch.allclose(output, expected, atol=1e-6)
        assert len(maps) == len(features) == (2 if recipe == "skt" else 0)
        for own, other in zip(maps, features, strict=True):
            assert torch.allclose(own, other, atol=1e-6)


def test_the_teacher_is_not_asked_again(spec, tmp_path):
    _, run = _run(spec, tmp_path / "work", "distill.recipe=kd")
    calls = []
    run.setting.teacher.register_forward_hook(lambda *_: calls.append(1))
    for step in range(9):
        run.step(step)
    assert not calls


def test_only_crops_that_are_drawn_are_looked_at(spec, tmp_path):
    _, run = _run(spec, tmp_path / "work", "distill.recipe=kd", "distill.views=50")
    assert len(run.cache.tensors[0]) == 36  # 9 steps of 4, none twice


def test_it_is_kept_and_read_and_made_again_when_damaged(spec, tmp_path, caplog):
    work = tmp_path / "work"
    _, first = _run(spec, work, "distill.recipe=kd")
    (path,) = work.glob("teacher-*.safetensors")
    made = path.stat().st_mtime_ns
    _, second = _run(spec, work, "distill.recipe=kd")
    assert path.stat().st_mtime_ns == made
    assert torch.equal(first.cache.tensors[0], second.cache.tensors[0])
    path.write_bytes(b"torn")
    with caplog.at_level("WARNING", "kdcompile"):
        _, third = _run(spec, work, "distill.recipe=kd")
    assert "damaged" in caplog.text
    assert torch.equal(first.cache.tensors[0], third.cache.tensors[0])


def test_another_augmentation_or_teacher_has_another_file(spec, tmp_path):
    work = tmp_path / "work"
    for sets in ((), ("distill.colour=0.1",), ("distill.recipe=skt",)):
        _run(spec, work, "distill.recipe=kd", *sets)
    assert len(list(work.glob("teacher-*.safetensors"))) == 3
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert network_digest(one) != network_digest(other)
    other.load_state_dict(one.state_dict())
    assert network_digest(one) == network_digest(other)


STATES = [
    torch.tensor(3), torch.tensor(True), torch.tensor([True, False]), torch.zeros(0, 4),
    torch.tensor(0.5, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16).T,
    torch.tensor(2.0, dtype=torch.float64), torch.ones(2, 1, 3, 3).contiguous(
        memory_format=torch.channels_last),
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda t: f"{t.dtype}{tuple(t.shape)}")
def test_any_state_has_a_digest(state):
    network, other = torch.nn.Identity(), torch.nn.Identity()
    network.register_buffer("state", state)
    other.register_buffer("state", state.clone())
    assert network_digest(network) == network_digest(other)
    if state.numel():
        other.state.fill_(0)
        assert network_digest(network) != network_digest(other)


def test_a_teacher_with_a_batch_norm_is_cached(spec, tmp_path):
    training = trainer(
        spec("distill.steps=2", "distill.views=2", "distill.recipe=kd"), tmp_path / "work"
    )
    training.setting.teacher.append(torch.nn.BatchNorm2d(1).eval())
    run = training._enter(0, training._plans[0], 2, 0)
    assert run.cache is not None
    run.release()


def test_it_is_bounded_and_says_so(spec, tmp_path):
    training, run = _run(spec, tmp_path / "work", "distill.teacher_cache_mb=0")
    assert run.cache is None
    assert "distill.teacher_cache_mb" in run.cache_note
    assert "need 0 MB" in training._state.stages["distill"]["teacher_cache"]


def test_where_nothing_recurs_nothing_is_cached():
    assert "every crop is new" in cache_problem(OutputTransfer, Distill())
    assert cache_problem(OutputTransfer, Distill(views=3)) is None


def test_mixed_images_are_refused():
    class Mixing(OutputTransfer):
        mixes_images = True

    with pytest.raises(KDError) as error:
        cache_problem(Mixing, Distill(views=3))
    assert error.value.code == "cache-mixed"
    assert cache_problem(Mixing, Distill(views=0)) is not None  # the fix


@pytest.mark.parametrize("views", [0, 2])
def test_the_teachers_map_is_of_the_photos_alone(spec, tmp_path, views):
    """With and without the cache: what it sees in a crop's padding is not imitated."""
    sets = ("distill.recipe=kd", f"distill.views={views}", "distill.scale=[0.3, 0.5]")
    _, run = _run(spec, tmp_path / "work", *sets)
    run.load(0)
    batch = run.sampler.render(run._table)
    known = None if run.cache is None else run.cache.read(run._index)
    seen, (whole, _) = run.see(batch, known), run.look(batch.images)
    padding = batch.inside == 0
    assert padding.any()
    assert (whole[padding] != 0).any()
    assert (seen.teacher[padding] == 0).all()
    assert torch.allclose(seen.teacher, whole * batch.inside, atol=1e-6)
    bare = run.see(replace(batch, inside=None), known)
    assert torch.allclose(bare.teacher, whole, atol=1e-6)
