"""What every kernel test runs under: Triton's interpreter without a GPU, poisoned memory."""

import pytest
import torch
from quick_interpreter import quicken

from kdcompile.kernels._runtime import triton_problem

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter():
    with pytest.MonkeyPatch.context() as patch:
        if triton_problem() is None:
            quicken(patch)
        yield


@pytest.fixture
def device():
    """The GPU where there is one; else the CPU, where kernels run in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request):
    """Every type of the maps."""
    return request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is NaN, or the largest integer: what a kernel forgets to write shows."""

    def filled(make):
        def wrapped(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            return (
                tensor
                if tensor.dtype == torch.bool
                else tensor.fill_(torch.iinfo(tensor.dtype).max)
            )

        return wrapped

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))
