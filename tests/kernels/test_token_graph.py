"""Relations between tokens against a float64 computation written from the formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import check_autocast, check_compiled, check_kernel, in_types, loss_and_gradients

from kdcompile.kernels import _tune
from kdcompile.kernels._graph_launch import backward_configs
from kdcompile.kernels._runtime import using
from kdcompile.kernels.token_graph import (
    BACKWARD,
    FLOAT32,
    FORWARD,
    token_graph,
    token_graph_reference,
)

# tokens of the student, width of the teacher
SHAPES = [((2, 1), 3), ((3, 5), 1), ((65, 33), 20), ((2, 7, 5), 70), ((2, 33, 9), 9)]


def _draw(shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def _oracle(student, teacher, temperature=0.1, diagonal=False):
    """Token by token, with the logarithms of probabilities."""
    if student.dim() == 2:
        student, teacher = student[None], teacher[None]
    total, rows = student.new_zeros(()), 0
    for s, t in zip(student, teacher.double(), strict=True):
        u, v = (f / f.norm(dim=1, keepdim=True) for f in (s, t))
        for i in range(len(s)):
            others = [j for j in range(len(s)) if diagonal or j != i]
            rows += 1
            if others:
                p = torch.log_softmax(u[others] @ u[i] / temperature, 0)
                q = torch.log_softmax(v[others] @ v[i] / temperature, 0)
                total = total + (q.exp() * (q - p)).sum()
    return total / rows


def _run(student, teacher, **options):
    with using("triton"):
        return loss_and_gradients(lambda s: token_graph(s, teacher, **options), [student])


def _check(shape, width, dtype, device, swap=False, temperature=0.1, **options):
    student = _draw(shape, dtype, device, 1)
    teacher = _draw((*shape[:-1], width), dtype, device, 2)
    if swap:  # maps flattened to [B, d, M], seen as tokens
        student = student.mT.contiguous().mT
    check_kernel(
        lambda s: token_graph(s, teacher, temperature, **options),
        lambda s: _oracle(s, teacher, temperature, **options),
        [student],
        # differences of log-probabilities, as large as 1 / tau and the logarithm of the tokens
        size=1 / temperature + math.log(shape[-2]),
        # a probability is off by the rounding of a similarity times 1 / tau, in a sum of 2 A u
        slack=1.0 if dtype != torch.float32 else max(1.0, 0.1 / temperature),
    )


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("shapes", "dtype"), in_types(SHAPES, SHAPES[2:4]), ids=str)
def test_value_and_gradient(shapes, diagonal, dtype, device):
    _check(*shapes, dtype, device, diagonal=diagonal)


@pytest.mark.parametrize("temperature", [0.01, 0.029, 0.5, 4.0])
def test_temperatures(temperature, dtype, device):
    """Below 0.03 the backward kernel takes each probability by itself."""
    _check((2, 19, 12), 6, dtype, device, temperature=temperature)


def test_a_single_token_with_itself(dtype, device):
    _check((3, 1, 4), 4, dtype, device, diagonal=True)


def test_tokens_of_maps(device):
    """A contiguous map's view as tokens has the tokens innermost, and so has its gradient."""
    _check((2, 21, 6), 11, torch.float16, device, swap=True)
    maps = _draw((2, 6, 3, 7), device=device).requires_grad_()
    other = _draw((2, 5, 3, 7), device=device, seed=1).contiguous(memory_format=torch.channels_last)
    with using("triton"):
        token_graph(maps.flatten(2).mT, other.flatten(2).mT).backward()
    expected = maps.detach().double().requires_grad_()
    _oracle(expected.flatten(2).mT, other.flatten(2).mT).backward()
    torch.testing.assert_close(maps.grad.double(), expected.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("choice", range(max(len(FORWARD), len(BACKWARD))))
def test_every_configuration(choice, device):
    with _tune.config(choice):
        _check((67, 40), 17, torch.float16, device)
        if choice < len(FLOAT32):
            _check((67, 70), 33, torch.float32, device)


@pytest.mark.parametrize(("room", "first"), [(101_376, -1), (232_448, 0)])
def test_the_first_tiles_fit_the_card(room, first, monkeypatch):
    card = SimpleNamespace(shared_memory_per_block_optin=room)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    student = SimpleNamespace(dtype=torch.float16, is_cuda=True, device="cuda")
    assert backward_configs(student)[0] == BACKWARD[first]


def test_wide_tokens_and_many_blocks(device):
    """Several chunks of features, several parts of the gradient, blocks that only a few fill."""
    _check((5, 300), 150, torch.float16, device)
    _check((131, 8), 3, torch.float32, device)


@settings(max_examples=12)
@given(
    graphs=st.integers(1, 2), tokens=st.integers(2, 40), width=st.integers(2, 40),
    theirs=st.integers(2, 40), diagonal=st.booleans(), temperature=st.floats(0.05, 2),
)  # fmt: skip
def test_any_shape(graphs, tokens, width, theirs, diagonal, temperature):
    _check(
        (graphs, tokens, width), theirs, torch.float32, "cpu", temperature=temperature,
        diagonal=diagonal,
    )  # fmt: skip


def test_lengths_do_not_matter(device):
    """Lengths from 1e-4 to 1e4 in float16: no product overflows or vanishes."""
    student, teacher = _draw((20, 8), device=device), _draw((20, 8), device=device, seed=1)
    lengths = torch.logspace(-4, 3.5, 20, device=device)[:, None]
    stretched = (student / student.norm(dim=1, keepdim=True) * lengths).half()
    found, (grad,) = _run(stretched, teacher.half())
    truth, (wide,) = loss_and_gradients(
        lambda s: _oracle(s, teacher.half().double()), [stretched.double()]
    )
    assert float(found) == pytest.approx(float(truth), rel=1e-4)
    strong = wide.abs().amax(1) > 1e-3  # what float16 can hold of a gradient
    torch.testing.assert_close(grad[strong].double(), wide[strong], rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_zero_tokens(diagonal, device):
    """A zero token has similarity 0 with all, and no gradient: kernel and reference agree."""
    student, teacher = _draw((6, 4), device=device), _draw((6, 3), device=device, seed=1)
    student[1] = student[4] = teacher[1] = teacher[3] = 0
    found = {}
    for choice in ("triton", "reference"):
        with using(choice):
            found[choice] = loss_and_gradients(
                lambda s: token_graph(s, teacher, diagonal=diagonal), [student]
            )
    (value, (grad,)), (expected, (wide,)) = found.values()
    assert not grad[1].any()
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, wide, rtol=1e-4, atol=1e-6)


def test_the_teacher_itself_and_a_permutation(device):
    student, teacher = _draw((9, 5), device=device), _draw((9, 7), device=device, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with using("triton"):
        assert float(token_graph(student, 3 * student)) == pytest.approx(0.0, abs=1e-6)
        moved = token_graph(student[order], teacher[order])
        assert float(moved) == pytest.approx(float(token_graph(student, teacher)), rel=1e-4)


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_nothing_to_relate(choice, device):
    for student in (_draw((0, 4), device=device), _draw((0, 3, 4), device=device),
                    _draw((1, 4), device=device), _draw((2, 1, 4), device=device)):  # fmt: skip
        with using(choice):
            value, (grad,) = loss_and_gradients(lambda s: token_graph(s, s.detach()), [student])
        assert float(value) == 0
        assert grad.shape == student.shape
        assert not grad.any()


@pytest.mark.parametrize("diagonal", [False, True])
def test_gradcheck_of_the_reference(diagonal):
    student = _draw((2, 4, 3), torch.float64).requires_grad_()
    teacher = _draw((2, 4, 5), torch.float64, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: token_graph_reference(s, teacher, 0.7, diagonal), student
    )


def test_compiled_autocast_and_again(device):
    student, teacher = _draw((6, 5), device=device), _draw((6, 9), device=device, seed=1)
    check_compiled(lambda s: token_graph(s, teacher), [student])
    check_autocast(lambda s: token_graph(s, teacher), [student])
    student, teacher = _draw((70, 4), device=device), _draw((70, 4), device=device, seed=1)
    (first, grad), (second, again) = (_run(student, teacher) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(grad[0], again[0])


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "problem"),
    [
        ((3, 4), (4, 4), 0.1, r"student \(3, 4\), teacher \(4, 4\)"),
        ((3, 4), (1, 3, 4), 0.1, r"student \(3, 4\), teacher \(1, 3, 4\)"),
        ((2, 3, 4, 5), (2, 3, 4, 5), 0.1, r"\[B, M, d\]"),
        ((3, 4), (3, 4), 0.0, "above 0"),
    ],
)
def test_what_does_not_fit(student, teacher, temperature, problem):
    with pytest.raises(ValueError, match=problem):
        token_graph(torch.ones(student), torch.ones(teacher), temperature)


def test_types_gradients_and_values_that_do_not_fit():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"student torch.float32, teacher torch.float16"):
        token_graph(ones, ones.half())
    with pytest.raises(ValueError, match="require a gradient"):
        token_graph(ones, ones.clone().requires_grad_())
    with pytest.raises(ValueError, match="student 0 of 6, teacher 1 of 6"):
        token_graph(ones, torch.tensor([[1, 2, float("nan")], [1, 2, 3]]), check=True)
