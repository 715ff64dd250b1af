"""Inter-RT against a float64 computation written from the formula."""

import pytest
import torch

from kdcompile.kernels.gram_relation import gram_relation

SIZES = [(3, 16, 12), (5, 8, 6), (4, 4, 3), (1, 4, 3)]


def _maps(batch=2, dtype=torch.float32, seed=0, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, *size, generator=generator, dtype=torch.float64).to(dtype)
        for size in sizes
    ]


def _oracle(students, teachers, reduction):
    def normal(maps):
        height, width = maps[-1].shape[2:]
        found = []
        for value in maps:
            k = -(-value.shape[2] // height)
            pooled = torch.nn.functional.max_pool2d(value.double(), k, ceil_mode=True).flatten(2)
            centred = pooled - pooled.mean(2, keepdim=True)
            found.append(centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt())
        return found, height * width

    (own, pixels), (other, _) = normal(students), normal(teachers)
    total, entries = 0.0, 0
    for i in range(len(own)):
        for j in range(i + 1, len(own)):
            mine = torch.einsum("nap,nbp->nab", own[i], own[j]) / pixels
            theirs = torch.einsum("nap,nbp->nab", other[i], other[j]) / pixels
            total = total + (mine - theirs).square().sum() / len(mine)
            entries += mine[0].numel()
    return total if reduction == "paper" else total / entries


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_value_and_gradients(dtype, tolerance, reduction):
    students = [m.requires_grad_() for m in _maps(dtype=dtype, seed=1)]
    teachers = _maps(dtype=dtype, seed=2)
    loss = gram_relation(students, teachers, reduction)
    wide = [m.detach().double().requires_grad_() for m in students]
    expected = _oracle(wide, teachers, reduction)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    found, truth = torch.autograd.grad(loss, students), torch.autograd.grad(expected, wide)
    for a, b in zip(found, truth, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 5 * tolerance


def test_affine_changes_of_a_channel_do_not_matter():
    students, teachers = _maps(seed=1), _maps(seed=2)
    moved = [m * torch.rand(m.shape[1], 1, 1).add(0.5) + 3 for m in students]
    expected = gram_relation(students, teachers).item()
    assert float(gram_relation(moved, teachers)) == pytest.approx(expected, rel=1e-3)


def test_batch_is_the_mean_of_single_images():
    students, teachers = _maps(3, seed=1), _maps(3, seed=2)
    whole = float(gram_relation(students, teachers, "paper"))
    single = [
        float(
            gram_relation(
                [m[i : i + 1] for m in students], [m[i : i + 1] for m in teachers], "paper"
            )
        )
        for i in range(3)
    ]
    assert whole == pytest.approx(sum(single) / 3, rel=1e-5)


def test_equal_and_constant_maps():
    students = _maps(seed=1)
    assert float(gram_relation(students, [m.clone() for m in students])) == 0.0
    flat = [torch.ones_like(m, requires_grad=True) for m in students]
    loss = gram_relation(flat, students)
    loss.backward()
    assert all(torch.isfinite(m.grad).all() for m in flat)


def test_maps_that_do_not_fit():
    students = _maps()
    with pytest.raises(ValueError, match="at least two"):
        gram_relation(students[:1], students[:1])
    with pytest.raises(ValueError, match="maps differ"):
        gram_relation(students, [m[:, :, :-1] for m in students])
    odd = _maps(sizes=[(2, 9, 9), (2, 4, 4)])
    with pytest.raises(ValueError, match="does not pool"):
        gram_relation(odd, odd)
