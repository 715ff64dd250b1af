"""Comparison of a kernel with float64: the loss and every gradient under a random upstream."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tolerances import FORWARD, GRADIENT
from torch import Tensor

from kdcompile.kernels._runtime import using

FLOOR = 1e-6  # a gradient this small is compared absolutely
Loss = Callable[..., Tensor]
HALVES = (torch.float16, torch.bfloat16)


def in_types(cases: Iterable[Any], also: Iterable[Any]) -> list[tuple[Any, torch.dtype]]:
    """Every case in float32, and some in the half types: a kernel computes in float32 in any case.

    The type changes the loads and stores, and the blocks of a matrix product. So `also` has a case
    with more than one block of each kind, the last of them short.
    """
    return [(c, torch.float32) for c in cases] + [(c, half) for half in HALVES for c in also]


def relative_rms(found: Tensor, truth: Tensor, floor: float = FLOOR) -> float:
    """RMS of the difference over RMS of the truth (over `floor` where the truth is smaller)."""
    if truth.numel() == 0:
        return 0.0
    gap = (found.double().cpu() - truth.double().cpu()).square().mean().sqrt()
    size = truth.double().square().mean().sqrt().clamp_min(floor)
    return float(gap / size)


def upstream_like(loss: Tensor, seed: int = 7) -> Tensor:
    """Random upstream gradient of the loss's shape, away from zero."""
    draw = torch.rand(loss.shape, generator=torch.Generator().manual_seed(seed))
    return (draw + 0.5).to(loss)


def loss_and_gradients(loss: Loss, leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """`loss(*leaves)` and the gradient of each leaf; leaves keep their memory format."""
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    value = loss(*own)
    return value.detach(), list(torch.autograd.grad(value, own, upstream_like(value)))


def check_kernel(
    kernel: Loss, oracle: Loss, leaves: Sequence[Tensor], size: float = FLOOR, slack: float = 1.0
) -> None:
    """The kernel under Triton, on `leaves`, against `oracle` on the same values in float64.

    Both take the leaves and return a loss. Gradients must have the type, shape and memory format
    of their leaf. `size` is the magnitude of the terms of which the loss is a difference: a loss
    below it is compared with it, and a gradient with its share of it, since float32 holds no
    more. `slack` widens the table of tolerances; say why where it is used.
    """
    with using("triton"):
        found, gradients = loss_and_gradients(kernel, leaves)
    truth, expected = loss_and_gradients(oracle, [leaf.double() for leaf in leaves])
    kind = leaves[0].dtype
    assert found.dtype == torch.float32
    assert relative_rms(found, truth, size) <= slack * FORWARD[kind], (found, truth)
    for i, (leaf, own, wide) in enumerate(zip(leaves, gradients, expected, strict=True)):
        assert own.shape == leaf.shape
        assert own.dtype == leaf.dtype
        assert own.stride() == leaf.stride(), f"gradient {i} is in another memory format"
        error = relative_rms(own, wide, max(FLOOR, size / max(leaf.numel(), 1)))
        assert error <= slack * GRADIENT[kind], f"gradient {i} is off by {error:.2e}"


def check_compiled(kernel: Loss, leaves: Sequence[Tensor]) -> None:
    """The kernel within one unbroken graph of `torch.compile`: the same, bit for bit."""
    torch._dynamo.reset()  # all callers share one line of code, and so its recompilation limit
    with using("triton"), warnings.catch_warnings():
        # PyTorch 2.13 warns about what its own tracer does with autograd functions
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
        traced = torch.compile(lambda *own: kernel(*own), backend="aot_eager", fullgraph=True)
        found, gradients = loss_and_gradients(traced, leaves)
        expected, truth = loss_and_gradients(kernel, leaves)
    assert torch.equal(found, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, truth, strict=True))


def check_autocast(loss: Loss, leaves: Sequence[Tensor]) -> None:
    """Autocast around the forward pass changes neither the kernel's result nor the reference's."""

    def half(*own: Tensor) -> Tensor:
        with torch.autocast(own[0].device.type, torch.bfloat16):
            return loss(*own)

    for choice in ("triton", "reference"):
        with using(choice):
            expected, truth = loss_and_gradients(loss, leaves)
            found, gradients = loss_and_gradients(half, leaves)
        assert torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, truth, strict=True))
