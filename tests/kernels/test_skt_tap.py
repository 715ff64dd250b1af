"""Both transfers at once against float64 computations written from the formulas."""

import pytest
import torch
from kernel_checks import (
    check_autocast,
    check_compiled,
    loss_and_gradients,
    relative_rms,
)
from tolerances import FORWARD, GRADIENT

from kdcompile.kernels import _tune
from kdcompile.kernels._runtime import ran, using
from kdcompile.kernels.skt_tap import skt_tap, skt_tap_reference

# student and teacher channels, height, width: pooled by 8, 3 (ragged) and 1, the last wide
TAPS = ((3, 5, 32, 24), (4, 6, 11, 8), (20, 70, 4, 3))


def _inputs(dtype=torch.float32, device="cpu", taps=TAPS, batch=2, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator)

    students = [
        draw(batch, s, h, w).to(dtype).to(device, memory_format=layout) for s, _, h, w in taps
    ]
    teachers = [
        draw(batch, t, h, w).relu().to(dtype).to(device, memory_format=layout)
        for _, t, h, w in taps
    ]
    # rounded as the kernel rounds them: else near ties of a window's maximum would be decided apart
    weights = [(draw(t, s) / s**0.5).to(dtype).float().to(device) for s, t, *_ in taps]
    biases = [(0.3 * draw(t)).to(device) for _, t, *_ in taps]
    densities = [draw(batch, 1, *taps[-1][2:]).to(dtype).to(device) for _ in range(2)]
    leaves = [*students, *weights, *biases, densities[0]]
    return leaves, teachers, densities[1], len(taps)


def _call(loss, leaves, teachers, density_t, count, **options):
    """One number of both transfers, so that either is checked under its own upstream."""
    students, weights = leaves[:count], leaves[count : 2 * count]
    biases, density = leaves[2 * count : -1], leaves[-1]
    intra, inter = loss(students, teachers, weights, biases, density, density_t, **options)
    scale = torch.linspace(0.5, 1.5, count, dtype=intra.dtype, device=intra.device)
    return (intra * scale).sum() + 3 * inter


def _oracle(students, teachers, weights, biases, density, density_t, reduction="mean"):
    """Loops over images, pixels as rows; a maximum of an adapted map counts where it is above 0."""

    def cosine(f, t):
        alive = (f.norm(dim=1) > 1e-6) & (t.norm(dim=1) > 1e-6)
        value = torch.nn.functional.cosine_similarity(f, t, dim=1, eps=1e-12)
        return 1 - torch.where(alive, value, 0.0)

    def normal(maps):
        rows = []
        for m in maps:
            k = -(-m.shape[2] // density.shape[2])
            own = torch.nn.functional.max_pool2d(m, k, ceil_mode=True).flatten(2)
            gap = own - own.mean(2, keepdim=True)
            rows.append(gap / (gap.square().mean(2, keepdim=True) + 1e-5).sqrt())
        return rows

    adapted = [
        torch.relu(torch.einsum("oc,nchw->nohw", w, s) + b.view(1, -1, 1, 1))
        for s, w, b in zip(students, weights, biases, strict=True)
    ]
    distances = [cosine(f, t) for f, t in zip(adapted, teachers, strict=True)]
    intra = torch.stack([d.mean() if reduction == "mean" else d.sum() / len(d) for d in distances])
    own, theirs = normal([*adapted, density]), normal([*teachers, density_t])
    total, entries = 0.0, 0
    for i in range(len(own)):
        for j in range(i + 1, len(own)):
            pixels = own[i].shape[2]
            gap = (own[i] @ own[j].mT - theirs[i] @ theirs[j].mT) / pixels
            total = total + gap.square().sum() / len(gap)
            entries += gap[0].numel()
    return intra, total if reduction == "paper" else total / entries


def _check(dtype, device, taps=TAPS, layout=torch.contiguous_format, **options):
    leaves, teachers, density_t, count = _inputs(dtype, device, taps, layout=layout)
    with using("triton"):
        found, gradients = loss_and_gradients(
            lambda *own: _call(skt_tap, own, teachers, density_t, count, **options), leaves
        )
    assert ran()["skt_tap"] == "triton"
    wide = [t.double() for t in teachers]
    truth, expected = loss_and_gradients(
        lambda *own: _call(_oracle, own, wide, density_t.double(), count, **options),
        [leaf.double() for leaf in leaves],
    )
    assert relative_rms(found, truth) <= FORWARD[dtype]
    for i, (leaf, own, true) in enumerate(zip(leaves, gradients, expected, strict=True)):
        assert own.dtype == leaf.dtype
        assert own.stride() == leaf.stride()
        slack = 1.0 if dtype == torch.float32 else 0.5
        assert relative_rms(own, true) <= slack * GRADIENT[dtype], i


@pytest.mark.parametrize(
    ("dtype", "layout", "reduction"),
    [
        (torch.float32, torch.contiguous_format, "paper"),
        (torch.float32, torch.channels_last, "mean"),
        (torch.float16, torch.channels_last, "paper"),
        (torch.bfloat16, torch.contiguous_format, "mean"),
    ],
    ids=str,
)
def test_value_and_gradients(dtype, layout, reduction, device):
    _check(dtype, device, layout=layout, reduction=reduction)


def test_half_precision_of_small_maps(device):
    """Of four pixels little is left once mean and deviation are out: roundings must not stay."""
    _check(torch.float16, device, taps=((3, 5, 16, 12), (4, 6, 8, 6), (5, 7, 2, 2)))


def test_widest_adapters_go_chunk_by_chunk(device):
    _check(torch.float16, device, taps=((70, 300, 4, 6), (5, 130, 2, 3)))


@pytest.mark.parametrize("choice", range(5))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check(torch.float16 if choice > 2 else torch.float32, device)


def test_one_pixel_and_dead_maps(device):
    leaves, teachers, density_t, count = _inputs(device=device, taps=((1, 1, 1, 1), (2, 3, 1, 1)))
    with torch.no_grad():
        for leaf in leaves[2 * count : -1]:
            leaf.fill_(-100.0)  # no adapted map is alive
    for choice in ("triton", "reference"):
        with using(choice):
            value, gradients = loss_and_gradients(
                lambda *own: _call(skt_tap, own, teachers, density_t, count), leaves
            )
        assert float(value) == pytest.approx(2.0)  # distance 1 of every tap, no relations
        assert all(torch.isfinite(g).all() for g in gradients)
        assert not any(g.any() for g in gradients[: 3 * count])


def test_batch_of_nothing(device):
    leaves, teachers, density_t, count = _inputs(device=device, batch=0)
    with using("triton"):
        value, gradients = loss_and_gradients(
            lambda *own: _call(skt_tap, own, teachers, density_t, count), leaves
        )
    assert float(value) == 0
    assert not any(g.any() for g in gradients)


def test_deterministic_and_repeatable(device):
    """Twice the same bits; and a kept graph gives the same gradient again."""
    leaves, teachers, density_t, count = _inputs(torch.float16, device)
    own = [leaf.requires_grad_() for leaf in leaves]
    with using("triton"):
        loss = _call(skt_tap, own, teachers, density_t, count)
        first = torch.autograd.grad(loss, own, retain_graph=True)
        second = torch.autograd.grad(loss, own)
        again = torch.autograd.grad(_call(skt_tap, own, teachers, density_t, count), own)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.soak
def test_compiled_and_autocast(device):
    leaves, teachers, density_t, count = _inputs(device=device)
    for check in (check_compiled, check_autocast):
        check(lambda *own: _call(skt_tap, own, teachers, density_t, count), leaves)


def test_what_has_no_kernel_runs_the_reference_and_says_so(device):
    leaves, teachers, density_t, count = _inputs(device=device, taps=((1, 2, 32, 32), (1, 2, 2, 2)))
    with using("triton"):
        found = _call(skt_tap, leaves, teachers, density_t, count)
    assert ran()["skt_tap"] == "reference: no kernel for windows of 16"
    assert torch.equal(found, _call(skt_tap_reference, leaves, teachers, density_t, count))


def test_what_does_not_fit():
    leaves, teachers, density_t, count = _inputs()
    with pytest.raises(ValueError, match=r"densities differ: student .*, teacher"):
        _call(skt_tap, leaves, teachers, density_t[:, :, :-1], count)
    with pytest.raises(ValueError, match="require a gradient"):
        _call(skt_tap, leaves, [t.clone().requires_grad_() for t in teachers], density_t, count)
    leaves[count] = leaves[count][:, :-1]
    with pytest.raises(ValueError, match=r"adapter is \(5, 2\), the maps need \(5, 3\)"):
        _call(skt_tap, leaves, teachers, density_t, count)
