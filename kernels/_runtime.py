"""The one import of Triton, and the choice between a kernel and its reference.

A kernel runs on CUDA tensors of a supported type. Everything else runs the plain PyTorch
reference, and `ran()` says so with the reason, so that a report can repeat it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

OLDEST = (3, 6)  # `make kernels-oldest` runs the tests on it
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Choice = Literal["triton", "reference"]

triton: Any = None
tl: Any = SimpleNamespace(constexpr=lambda x: x)  # without Triton no kernel is called
with suppress(ImportError):
    triton, tl = import_module("triton"), import_module("triton.language")

_forced: list[Choice] = []
_ran: dict[str, str] = {}


def triton_problem() -> str | None:
    """Why Triton cannot be used, or None."""
    if triton is None:
        return "Triton is not installed"
    if not triton_since(*OLDEST):
        return f"Triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}"
    if os.environ.get("TRITON_INTERPRET") == "1" and not triton_since(3, 7):
        numpy = import_module("numpy").__version__
        if _version(numpy) >= (2, 4):
            return (
                f"the interpreter of Triton {triton.__version__} fails under NumPy {numpy}:"
                " install numpy<2.4 or triton>=3.7"
            )
    return None


def triton_since(major: int, minor: int) -> bool:
    """Whether Triton is there, of this version or newer."""
    return triton is not None and _version(triton.__version__) >= (major, minor)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, or the plain function where Triton is missing: nothing calls it then."""
    return kernel if triton_problem() else triton.jit(kernel)


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Force the kernels or the references: for tests and benchmarks.

    Raises:
        RuntimeError: kernels are forced, and Triton cannot be used.
    """
    if choice == "triton" and (problem := triton_problem()):
        raise RuntimeError(problem)
    _forced.append(choice)
    try:
        yield
    finally:
        _forced.pop()


def use_triton(name: str, *tensors: Tensor, unless: str | None = None) -> bool:
    """Whether kernel `name` runs on these tensors; the choice is kept for `ran`.

    `unless` is why this case has no kernel, if it has none.
    """
    reason = unless or _reason(tensors)
    if not torch.compiler.is_compiling():
        _ran[name] = f"reference: {reason}" if reason else "triton"
    return reason is None


def _reason(tensors: tuple[Tensor, ...]) -> str | None:
    if _forced:
        return None if _forced[-1] == "triton" else "asked for"
    if any(not t.is_cuda for t in tensors):
        return "tensors on the CPU"
    unsupported = {t.dtype for t in tensors if t.is_floating_point()} - set(DTYPES)
    if unsupported:
        return f"{unsupported.pop()} has no kernel"
    return triton_problem()


def ran() -> dict[str, str]:
    """What each kernel called since `forget` last ran as: "triton" or "reference: why"."""
    return dict(_ran)


def forget() -> None:
    """Start `ran` anew."""
    _ran.clear()


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """No autocast inside: a reference computes in the type that it asks for."""
    if tensor.is_meta:  # sizes alone, and a device that autocast does not know
        yield
        return
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def dot_precision() -> str:
    """How float32 products run on tensor cores: three TF32 products for one, or one of them.

    Follows `torch.set_float32_matmul_precision`: "highest" (PyTorch's default) keeps float32's
    accuracy.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
