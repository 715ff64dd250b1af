"""mixup: an exact share, exact counts, and the deviation of each row as its temperature."""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe, trainer
from recipe_fixtures import load
from tiny_training import trainer as counting_trainer
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.recipe import RecipeContext
from kdcompile.distill.recipes.mixup import Mixup, pairs

CPU = torch.device("cpu")


def _batch(size, target, side=4, channels=2, kind=torch.float64):
    random = torch.Generator().manual_seed(size)
    images = torch.randn(size, channels, side, side, generator=random).to(kind)
    return Batch(images, target, torch.arange(size))


def _prepared(kind, classes=3, made=None):
    """The recipe on a student of so many classes, which counts what it is asked."""
    made = made or recipe("mixup", kind)
    student = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(classes))

    def crops():
        yield Batch(torch.zeros(1, 2, 4, 4), torch.zeros(1), torch.zeros(1))

    made.prepare(RecipeContext(None, student, None, (), 1, crops, None, nullcontext, Processes()))
    assert all(module.training for module in student.modules())
    return made


def _parts(whole, before):
    """For each image of a view its partner and the share it keeps, by least squares; numpy."""
    rows = before.images.flatten(1).numpy()
    found = {}
    for i, row in enumerate(whole.images.flatten(1).numpy()):
        if np.allclose(row, rows[i]):
            continue
        best = []
        for j in range(len(rows)):
            if j != i:
                way = rows[j] - rows[i]
                rest = way @ (row - rows[i]) / (way @ way)
                best.append((np.abs(rows[i] + rest * way - row).max(), j, 1 - rest))
        error, partner, kept = min(best)
        assert error < 1e-6
        found[i] = (partner, kept)
    return found


@pytest.mark.parametrize(
    ("size", "share", "mixed"),
    [(64, 0.1, 7), (10, 0.1, 1), (70, 0.1, 7), (2, 0.1, 1), (5, 0.5, 3), (6, 1.0, 6), (8, 0.0, 0)],
)
def test_the_share_is_exact_and_nobody_is_mixed_with_itself(size, share, mixed):
    """The released code draws with replacement: 41 % stay mixed where 10 % are meant."""
    for seed in range(20):
        torch.manual_seed(seed)
        first, second = pairs(size, share, CPU)
        assert len(set(first.tolist())) == len(set(second.tolist())) == mixed
        assert (first != second).all()
    released = load("mixup")["differs"][1]
    assert released["theirs"] > 0.4
    assert len(pairs(64, Mixup.share, CPU)[0]) / 64 == released["expected"]


def test_every_image_is_mixed_equally_often():
    torch.manual_seed(0)
    drawn = [pairs(8, 0.25, CPU) for _ in range(2000)]
    for place in (0, 1):
        times = Counter(int(i) for draw in drawn for i in draw[place])
        assert all(420 < times[i] < 580 for i in range(8))


def test_blends_keep_the_larger_part_and_counts_are_linear():
    """Counts of a blend are those of its parts, to float64's last digits."""
    target = torch.rand(20, 1, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    made, batch = _prepared("counting"), _batch(20, target)
    kept = []
    for seed in range(40):
        torch.manual_seed(seed)
        view = made.view(batch)
        assert torch.equal(view.photo, batch.photo)
        parts = _parts(view, batch)
        assert len(parts) == 2
        counts = target.sum((1, 2, 3)).tolist()
        for i, seen in enumerate(view.target.sum((1, 2, 3)).tolist()):
            partner, share = parts.get(i, (i, 1.0))
            assert seen == pytest.approx(share * counts[i] + (1 - share) * counts[partner])
        kept += [share for _, share in parts.values()]
    assert 0.5 <= min(kept) < 0.53
    assert 0.97 < max(kept) <= 1
    assert np.mean(kept) == pytest.approx(0.75, abs=0.05)  # uniform


def test_a_blend_of_one_count_has_that_count_in_float64():
    target = torch.full((10, 1, 8, 8), 1 / 3, dtype=torch.float64)
    view = _prepared("counting").view(_batch(10, target))
    assert (view.target.sum((1, 2, 3)) - target.sum((1, 2, 3))).abs().max() < 1e-13


def test_classes_become_probabilities_and_values_mix():
    labels = torch.arange(20) % 3
    made, batch = _prepared("classification"), _batch(20, labels)
    torch.manual_seed(3)
    view = made.view(batch)
    assert view.target.shape == (20, 3)
    assert torch.equal(view.target.argmax(1), labels)
    assert torch.allclose(view.target.sum(1), torch.ones(20))
    for i, (partner, share) in _parts(view, batch).items():
        expected = np.zeros(3)
        expected[int(labels[i])] += share
        expected[int(labels[partner])] += 1 - share
        assert view.target[i].numpy() == pytest.approx(expected, abs=1e-6)
    values = torch.randn(20, 1)
    batch = _batch(20, values)
    view = _prepared("regression").view(batch)
    for i, (partner, share) in _parts(view, batch).items():
        expected = share * values[i] + (1 - share) * values[partner]
        assert view.target[i].item() == pytest.approx(expected.item(), abs=1e-5)


class Never(Mixup):
    share = 0.0


def test_a_share_of_nothing_and_a_batch_of_one_are_the_plain_batch():
    made = _prepared("classification")
    labels = torch.tensor([2, 0, 1, 1])
    never = _prepared("classification", made=Never([], made.options, made.objective))
    for given, mixup in ((_batch(4, labels), never), (_batch(1, labels[:1]), made)):
        view = mixup.view(given)
        assert torch.equal(view.images, given.images)
        student, teacher, _ = logits(len(given.images), 3)
        plain = mixup.base(inputs(student, teacher, given.target))
        seen = mixup.base(inputs(student, teacher, view.target.double()))
        for name, term in plain.items():
            assert seen[name].item() == pytest.approx(term.item(), rel=1e-12)


def test_the_same_seed_gives_the_same_view_in_type_and_format():
    batch = _batch(8, torch.rand(8, 1, 2, 2), kind=torch.bfloat16)
    last = Batch(batch.images.to(memory_format=torch.channels_last), batch.target, batch.photo)
    made, views = _prepared("counting"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(made.view(last))
    assert views[0].images.is_contiguous(memory_format=torch.channels_last)
    assert views[0].images.dtype == torch.bfloat16
    assert views[0].target.dtype == torch.float32
    assert torch.equal(views[0].images, views[1].images)
    assert not torch.equal(views[0].images, views[2].images)


def _expected(student, teacher, target):
    """Hard and soft, row by row."""
    hard, soft = 0.0, 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), target.numpy(), strict=True):
        s, t = s / np.std(s, ddof=1), t / np.std(t, ddof=1)
        p, q = (np.exp(z) / np.exp(z).sum() for z in (s, t))
        hard -= float(np.sum(y * np.log(p))) / len(student)
        soft += float(np.sum(q * np.log(q / p))) / len(student)
    return {"hard": hard, "soft": soft}


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (2, 3), (7, 5)])
def test_it_is_the_formula(rows, classes):
    student, teacher, _ = logits(rows, classes)
    target = torch.rand(rows, classes, generator=torch.Generator().manual_seed(2)).double()
    target /= target.sum(1, keepdim=True)
    terms = recipe("mixup").terms(inputs(student, teacher, target))
    for name, value in _expected(student, teacher, target).items():
        assert terms[name].item() == pytest.approx(value, rel=1e-10)


def test_it_is_the_released_loss_and_finite_where_that_is_not():
    fixture = load("mixup")
    case = fixture["cases"]["std"]
    student, teacher, target = (case["inputs"][n] for n in ("student", "teacher", "target"))
    student.requires_grad_()
    made = recipe("mixup")
    terms = made.terms(inputs(student, teacher, target))
    assert made.weights == {"hard": case["hyper"]["gamma"], "soft": case["hyper"]["alpha"]}
    loss = sum(weight * terms[name] for name, weight in made.weights.items())
    loss.backward()
    assert loss.item() == pytest.approx(case["value"], rel=1e-10)
    assert terms["hard"].item() == pytest.approx(case["values"]["hard"], rel=1e-10)
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-9, atol=1e-12)
    assert np.isnan(float(fixture["differs"][0]["theirs"]))
    flat = student.detach().clone()
    flat[1] = 0.25
    flat.requires_grad_()
    sum(made.terms(inputs(flat, torch.zeros_like(teacher), target)).values()).backward()
    assert torch.isfinite(flat.grad).all()


def test_gradients_and_invariants():
    student, teacher, labels = logits(3, 4)
    target = torch.nn.functional.one_hot(labels, 4).double()
    made = recipe("mixup")

    def loss(logits_s):
        return sum(made.terms(inputs(logits_s, teacher, target)).values())

    assert torch.autograd.gradcheck(loss, student.clone().requires_grad_())
    value = loss(student).item()
    assert loss(3 * student + 2).item() == pytest.approx(value)  # the deviation is the temperature
    order = torch.tensor([2, 0, 1])
    shuffled = made.terms(inputs(student[order], teacher[order], labels[order]))
    assert sum(shuffled.values()).item() == pytest.approx(value)
    same = made.terms(inputs(teacher, teacher, target))
    assert same["soft"].item() == pytest.approx(0, abs=1e-12)


def test_bf16_is_near():
    student, teacher, _ = logits(6, 4)
    target = torch.softmax(student, 1)
    made, given = recipe("mixup"), inputs(student, teacher, target)
    exact, half = made.terms(given), made.terms(in_type(given, torch.bfloat16))
    for name, term in half.items():
        assert torch.isfinite(term)
        assert term.item() == pytest.approx(exact[name].item(), rel=0.02)


def test_elsewhere_the_terms_are_those_of_the_task():
    """Densities and values keep their objective: hard, count and soft of the blends."""
    student, target, teacher = torch.rand(3, 4, 1, 4, 4).double().unbind()
    given = inputs(student, teacher, target)
    for kind in ("counting", "regression"):
        own, plain = recipe("mixup", kind).terms(given), recipe("kd", kind).terms(given)
        assert {n: v.item() for n, v in own.items()} == {n: v.item() for n, v in plain.items()}


def test_beside_it_other_recipes_read_the_class_of_the_larger_part():
    student, teacher, labels = logits(5, 3)
    target = 0.8 * torch.nn.functional.one_hot(labels, 3) + 0.2 / 3
    for other in ("tf-kd", "reliability"):
        made, alone = recipe(f"mixup+{other}"), recipe(other)
        own = made.terms(inputs(student, teacher, target))
        theirs = alone.extra(inputs(student, teacher, labels))
        assert theirs.items() <= own.items()
        assert own["hard"].item() == _approx_hard(student, teacher, target)


def _approx_hard(student, teacher, target):
    return pytest.approx(_expected(student, teacher, target)["hard"], rel=1e-6)


def test_where_the_soft_term_is_replaced_it_is_not_computed():
    """A student of more classes than the teacher has none to compute."""
    student, _, labels = logits(5, 4)
    teacher = logits(5, 3)[1]
    terms = recipe("mixup+class-relation").terms(inputs(student, teacher, labels))
    assert set(terms) == {"hard", "class_relation"}


@pytest.mark.parametrize("name", ["mixup", "skt+mixup"])
def test_a_counting_step_sees_the_blends(spec, tmp_path, name):
    training = counting_trainer(spec("distill.steps=2", f"distill.recipe={name}"), tmp_path / "w")
    run = training._enter(0, training._plans[0], 2, 0)
    seen = []
    run._forward = lambda images, target, said: (
        seen.append(images),
        run._plain(images, target, said),
    )[1]
    run.step(0)
    changed = (seen[0] != run.sampler.batch(0).images).flatten(1).any(1)
    assert int(changed.sum()) == 1  # of 4
    assert torch.isfinite(run.values).all()


def test_a_step_whose_terms_are_balanced_draws_what_a_replay_would(spec, tmp_path):
    """Measuring the terms' gradients first takes random numbers too."""
    sets = ("distill.steps=2", "distill.recipe=mixup", 'distill.balance="gradient"')
    training = counting_trainer(spec(*sets), tmp_path / "w")
    run = training._enter(0, training._plans[0], 2, 0)
    seen = []
    run._forward = lambda *given: (seen.append(given[0]), run._plain(*given))[1]
    run.step(0)
    torch.manual_seed(run.seed_of(0))
    assert torch.equal(seen[0], run.recipe.view(run.sampler.batch(0)).images)


def test_a_class_training_runs_and_refuses_recurring_crops(tmp_path):
    with pytest.raises(KDError) as error:
        trainer(tmp_path, "distill.steps=4", "distill.recipe=mixup", "distill.views=2").run()
    assert error.value.code == "cache-mixed"
    assert "views = 0" in error.value.fix
    fixed = trainer(tmp_path, "distill.steps=4", "distill.recipe=mixup", "distill.views=0").run()
    assert set(fixed.metrics[-1]["terms"]) == {"hard", "soft"}
    assert np.isfinite(fixed.metrics[-1]["loss"])


def test_the_view_waits_for_no_value():
    """On tensors without values; reading one would be an error, as it is in a CUDA graph."""
    made = _prepared("classification")
    with FakeTensorMode():
        labels, photo = torch.zeros(8, dtype=torch.int64), torch.arange(8)
        view = made.view(Batch(torch.zeros(8, 2, 4, 4), labels, photo))
        with pytest.raises(DataDependentOutputException):
            view.target.sum().item()
    assert (view.images.shape, view.target.shape) == ((8, 2, 4, 4), (8, 3))
