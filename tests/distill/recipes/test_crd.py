"""crd: NCE with two banks, against float64 and three steps of released code; its negatives."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recipe_fixtures import load
from relation_recipes import made, pooled, seen

from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.embedding import unit
from kdcompile.distill.recipes import crd

PHOTOS = 7
CLASSES = torch.tensor([2, 0, 2, 1, 0, 2, 2])


@pytest.fixture(autouse=True)
def few_negatives(monkeypatch):
    monkeypatch.setattr(crd, "NEGATIVES", 5)


def _ground(classes=None, photos=PHOTOS, processes=None):
    """`crops` gives the photos in batches of 3, last first."""

    def crops():
        for some in reversed(torch.arange(photos).split(3)):
            yield Batch(torch.zeros(len(some), 1, 2, 2), classes[some], some)

    return SimpleNamespace(photos=photos, crops=crops, processes=processes or Processes())


def _recipe(kind="counting", ground=None, **options):
    recipe = made("crd", kind=kind, **options)
    recipe.prepare(ground or _ground())
    return recipe


def _maps(images=3, kind=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((images, 3, 2, 5), (images, 6, 2, 5))
    return [torch.randn(s, generator=generator).to(kind) for s in shapes]


def _by_formula(rows, banks, shown, scales, temperature):
    """The sum over both networks of the mean negative log-likelihood, by h = p / (p + K/N)."""
    total = 0.0
    for own, bank, scale in zip(rows, reversed(banks), scales, strict=True):
        for row, photos in zip(own, shown, strict=True):
            noise = (len(photos) - 1) / len(bank)
            for place, photo in enumerate(photos):
                p = math.exp(row @ bank[photo] / temperature) / scale
                h = (p if place == 0 else noise) / (p + noise + 1e-7)
                total -= math.log(h) / len(own)
    return total


@pytest.mark.parametrize("reduction", ["paper", "mean"])
@pytest.mark.parametrize("photo", [[4, 0, 6], [2]])
def test_it_is_its_formula(reduction, photo):
    recipe = _recipe(reduction=reduction).double()
    maps, photo = _maps(len(photo), torch.float64), torch.tensor(photo)
    torch.manual_seed(3)
    negatives = recipe._negatives(photo)
    torch.manual_seed(3)
    value = recipe.extra(seen(*maps, photo=photo))["crd"].item()
    fresh = _recipe().double()  # the banks as they were
    banks = fresh.banks.numpy()
    shown = np.column_stack([photo.numpy(), negatives.numpy()])
    rows, scales = [], []
    for each, head, bank in zip(maps, fresh.heads, banks[::-1], strict=True):
        own = pooled(each) @ head.weight.detach().numpy().T + head.bias.detach().numpy()
        rows.append(own / np.linalg.norm(own, axis=1, keepdims=True))
        scores = [np.exp(rows[-1][i] @ bank[p] / 0.07) for i in range(len(own)) for p in shown[i]]
        scales.append(np.mean(scores) * PHOTOS)
    expected = _by_formula(rows, banks, shown, scales, 0.07)
    nothing = 1 if reduction == "paper" else 2 * (math.log(6) + 1)
    assert value == pytest.approx(expected / nothing, rel=1e-8)
    assert recipe.scales.tolist() == pytest.approx(scales, rel=1e-9)


def test_three_steps_are_the_released_code(monkeypatch):
    cases = load("crd")["cases"]
    first = cases["step-0"]
    monkeypatch.setattr(crd, "TEMPERATURE", first["hyper"]["temperature"])
    recipe = _recipe().double()
    recipe.banks = torch.stack([first["inputs"][f"{n}_memory"] for n in ("student", "teacher")])
    for case in cases.values():
        inputs, after = case["inputs"], case["values"]
        student = inputs["student"].requires_grad_()
        rows = torch.stack([unit(student), unit(inputs["teacher"])])
        loss = recipe._contrast(rows, inputs["contrast"])
        assert loss.item() == pytest.approx(case["value"], rel=1e-9)
        loss.backward()
        assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)
        recipe._remember(rows.detach(), inputs["sample"])
        for bank, name in zip(recipe.banks, ("student", "teacher"), strict=True):
            assert torch.allclose(bank, after[f"{name}_memory"], rtol=1e-9, atol=1e-9)
        scales = [after["student_z"], after["teacher_z"]]
        assert recipe.scales.tolist() == pytest.approx(scales, rel=1e-9)


def test_an_embedding_of_zero_is_finite_as_it_is_not_in_the_released_code():
    assert load("crd")["differs"][4]["theirs"] == "nan"
    recipe = _recipe()
    for head in recipe.heads:
        torch.nn.init.zeros_(head.bias)
    student = torch.zeros(3, 3, 2, 5, requires_grad=True)
    loss = recipe.extra(seen(student, torch.zeros(3, 6, 2, 5), torch.arange(3)))["crd"]
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert recipe.banks.isfinite().all()


def test_embeddings_that_say_nothing_cost_1():
    """Under mean: all scores equal, of as many photos as you like."""
    rows = torch.zeros(2, 4, crd.WIDTH)
    recipe = _recipe()
    loss = recipe._contrast(rows, torch.randint(PHOTOS, (4, 6)))
    assert loss.item() / (2 * (math.log(6) + 1)) == pytest.approx(1, rel=0.05)
    huge = crd.nce(torch.full((1, 1 + 4096), -math.log(10**4)), 10**4)
    assert huge.item() == pytest.approx(math.log(4097) + 1, rel=1e-3)


def test_the_sum_over_many_negatives_is_exact_in_float32():
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 16385) - math.log(50_000)
    exact = crd.nce(logits.double(), 50_000)
    assert crd.nce(logits, 50_000).item() == pytest.approx(exact.item(), rel=1e-6)


def test_gradients_reach_student_and_both_heads():
    recipe = _recipe()
    student, teacher = _maps()
    recipe.extra(seen(student.requires_grad_(), teacher, torch.arange(3)))["crd"].backward()
    assert student.grad.any()
    assert all(p.grad.any() for p in recipe.heads.parameters())
    exact = _recipe().double()
    rows = torch.randn(2, 3, crd.WIDTH, dtype=torch.float64)[:, :, :6].requires_grad_()
    exact.banks = exact.banks[:, :, :6]
    shown = torch.randint(PHOTOS, (3, 6))
    exact._contrast(rows.detach(), shown)  # sets the scales
    exact.scales = exact.scales.detach()
    assert torch.autograd.gradcheck(lambda r: exact._contrast(r, shown), rows)


def test_a_batch_in_another_order_costs_the_same():
    order = torch.tensor([2, 0, 1])
    maps, photo, recipe = _maps(), torch.tensor([5, 1, 3]), _recipe()
    recipe._negatives = lambda p: (p[:, None] + torch.arange(1, 6)) % PHOTOS
    with torch.no_grad():
        plain = recipe.extra(seen(*maps, photo=photo))["crd"]
        turned = recipe.extra(seen(*(m[order] for m in maps), photo=photo[order]))["crd"]
    assert turned.item() == pytest.approx(plain.item(), rel=1e-5)


def test_bfloat16_is_near():
    maps, photo = [each.bfloat16() for each in _maps()], torch.tensor([1, 2, 3])
    torch.manual_seed(1)
    half = _recipe().extra(seen(*maps, photo=photo))["crd"]
    whole = _recipe().double().extra(seen(*(m.double() for m in maps), photo=photo))["crd"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["counting", "classification"])
def test_negatives_are_all_other_photos_of_other_classes_equally(kind):
    recipe = _recipe(kind)
    recipe.learn(_ground(CLASSES))
    classes = CLASSES if kind == "classification" else torch.arange(PHOTOS)
    torch.manual_seed(0)
    drawn = torch.cat([recipe._negatives(torch.arange(PHOTOS)) for _ in range(600)], 1)
    for photo, negatives in enumerate(drawn):
        others = (classes != classes[photo]).nonzero().flatten()
        found, times = negatives.unique(return_counts=True)
        assert found.tolist() == others.tolist()
        assert (times / len(negatives) * len(others)).sub(1).abs().max() < 0.2


def test_a_step_fills_the_banks_and_a_look_does_not():
    recipe, photo = _recipe(), torch.tensor([4, 1, 4])
    before, inputs = recipe.state_dict(), seen(*_maps(), photo=photo)
    before = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        recipe.extra(inputs)
    assert all(torch.equal(v, before[n]) for n, v in recipe.state_dict().items())
    address = recipe.banks.data_ptr()
    recipe.extra(inputs)["crd"].backward()  # the banks that the loss saw are kept
    assert recipe.banks.data_ptr() == address
    changed = (recipe.banks != before["banks"]).any(2)
    assert changed.tolist() == [[i in (1, 4) for i in range(PHOTOS)]] * 2
    assert torch.allclose(recipe.banks[:, [1, 4]].norm(dim=2), torch.ones(2, 2))
    own = unit(recipe.heads[0](inputs.student_features[0].mean((2, 3)))).detach()
    last = unit(0.5 * before["banks"][0, 4] + 0.5 * own[2])
    assert torch.allclose(recipe.banks[0, 4], last, atol=1e-6)
    scales = recipe.scales.clone()
    assert (scales > 0).all()
    recipe.extra(seen(*_maps(seed=1), photo=photo))
    assert torch.equal(recipe.scales, scales)


def test_the_state_continues_where_it_was():
    recipe, inputs = _recipe(), seen(*_maps(), photo=torch.tensor([0, 5, 6]))
    recipe.extra(inputs)
    other = made("crd")
    other.prepare(_ground())
    other.load_state_dict(recipe.state_dict())
    values = []
    for each in (recipe, other):
        torch.manual_seed(5)
        values.append(each.extra(seen(*_maps(seed=2), photo=torch.tensor([0, 1, 1])))["crd"])
    assert torch.equal(*values)
    assert torch.equal(recipe.banks, other.banks)


class _Two(Processes):
    """This process beside one that saw other photos."""

    def gather(self, tensor):
        return [tensor, self.theirs[tensor.dtype]]

    def mean(self, tensor):
        return (tensor + 3) / 2


def test_banks_have_the_photos_of_all_processes():
    two = _Two()
    rows = unit(torch.randn(2, 3, crd.WIDTH))
    object.__setattr__(two, "theirs", {torch.float32: rows, torch.int64: torch.tensor([6, 2, 0])})
    recipe, alone = _recipe(ground=_ground(processes=two)), _recipe()
    photo, maps = torch.tensor([1, 0, 3]), _maps()
    for each in (recipe, alone):
        torch.manual_seed(0)
        each.extra(seen(*maps, photo=photo))
    assert torch.equal(recipe.banks[:, [1, 3]], alone.banks[:, [1, 3]])
    for place, theirs in ((0, 6), (1, 2), (2, 0)):  # photo 0 was in both: the last process wins
        row = unit(0.5 * _recipe().banks[:, theirs] + 0.5 * rows[:, place])
        assert torch.allclose(recipe.banks[:, theirs], row, atol=1e-6)
    mean = alone.scales / PHOTOS
    assert torch.allclose(recipe.scales, (mean + 3) / 2 * PHOTOS)


def test_one_photo_or_one_class_is_refused():
    same = _ground(torch.ones(PHOTOS, dtype=torch.int64))
    for action, what in (
        (lambda: _recipe(ground=_ground(photos=1)), "one image"),
        (lambda: _recipe("classification").learn(same), "one class"),
    ):
        with pytest.raises(KDError) as error:
            action()
        assert error.value.code == "recipe-photos"
        assert error.value.message.endswith(what)
        assert "kd" in error.value.fix
    _recipe().learn(same)  # without classes each photo is alone
