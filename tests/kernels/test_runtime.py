"""Which implementation runs, and that the references need no Triton."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from kdcompile.kernels import _runtime
from kdcompile.kernels._runtime import forget, full_precision, ran, use_triton, using
from kdcompile.kernels.kd_kl import kd_kl, kd_kl_reference

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from kdcompile.kernels import _runtime
from kdcompile.kernels._registry import kernels
from kdcompile.kernels.kd_kl import kd_kl
found = kernels()
assert _runtime.triton is None
assert "kd_kl" in found, found
x = torch.tensor([[1.0, 2.0]], requires_grad=True)
kd_kl(x, torch.tensor([[2.0, 1.0]])).backward()
assert x.grad.abs().sum() > 0
for kernel in found.values():
    setting = kernel.settings[0]
    setting.make(torch.device("meta"), setting.dtypes[0], setting.layouts[0]).kernel()
assert set(_runtime.ran()) >= set(found), _runtime.ran()
assert set(_runtime.ran().values()) == {"reference: tensors on the CPU"}, _runtime.ran()
print(_runtime.triton_problem())
"""


def _on_cuda(dtype=torch.float16):
    """As much of a CUDA tensor as the choice looks at."""
    return SimpleNamespace(is_cuda=True, dtype=dtype, is_floating_point=lambda: True)


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    monkeypatch.setattr(_runtime, "_ran", {})


@pytest.fixture
def version(monkeypatch):
    """Pretend that this Triton is installed, or with None that there is none."""

    def pretend(name):
        found = None if name is None else SimpleNamespace(__version__=name)
        monkeypatch.setattr(_runtime, "triton", found)

    return pretend


def test_reference_on_a_cpu():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    loss = kd_kl(student, teacher, 2.0)
    options = (2.0, None, 0, 4, None, False, False)
    assert torch.equal(loss, kd_kl_reference(student, teacher, *options))
    assert ran() == {"kd_kl": "reference: tensors on the CPU"}


def test_kernel_on_cuda_tensors(version):
    version("3.7.0")
    assert use_triton("loss", _on_cuda(), _on_cuda(torch.float32))
    assert ran() == {"loss": "triton"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [(None, "Triton is not installed"), ("3.5.1", "Triton 3.5.1 is older than 3.6")],
)
def test_triton_missing_or_too_old(version, name, reason):
    version(name)
    assert not use_triton("loss", _on_cuda())
    assert ran() == {"loss": f"reference: {reason}"}
    with pytest.raises(RuntimeError, match=reason), using("triton"):
        pass


@pytest.mark.parametrize("name", ["3.7.0", "3.10.1", "4.0.0", "3.6.0+git1234"])
def test_triton_new_enough(version, name, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    version(name)
    assert _runtime.triton_problem() is None


@pytest.mark.parametrize(
    ("interpret", "name", "numpy", "fails"),
    [
        ("1", "3.6.0", "2.4.0", True),
        ("1", "3.6.1", "3.0.1", True),
        ("1", "3.6.0", "2.3.5", False),
        ("1", "3.7.0", "2.4.0", False),
        ("0", "3.6.0", "2.4.0", False),
    ],
)
def test_an_interpreter_that_fails_under_this_numpy(
    version, monkeypatch, interpret, name, numpy, fails
):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr("numpy.__version__", numpy)
    version(name)
    problem = _runtime.triton_problem()
    assert (problem is not None) is fails
    if fails:
        assert f"of Triton {name} fails under NumPy {numpy}: install numpy<2.4" in problem


def test_reasons_in_their_order(version):
    version("3.7.0")
    assert not use_triton("loss", _on_cuda(torch.float64))
    assert ran()["loss"] == "reference: torch.float64 has no kernel"
    assert not use_triton("loss", _on_cuda(), torch.ones(1))
    assert ran()["loss"] == "reference: tensors on the CPU"
    assert not use_triton("loss", _on_cuda(), unless="too many channels")
    assert ran()["loss"] == "reference: too many channels"


def test_whole_numbers_have_no_say(version):
    """An index beside the maps is of a type without a kernel, and needs none."""
    version("3.7.0")
    index = SimpleNamespace(is_cuda=True, dtype=torch.int64, is_floating_point=lambda: False)
    assert use_triton("loss", _on_cuda(), index)


def test_forced_and_nested():
    with using("triton"):
        assert use_triton("loss", torch.ones(1))
        with using("reference"):
            assert not use_triton("loss", _on_cuda())
            assert ran() == {"loss": "reference: asked for"}
        assert use_triton("loss", torch.ones(1))
    with pytest.raises(KeyError), using("triton"):
        raise KeyError
    assert not use_triton("loss", torch.ones(1))


def test_what_ran_is_a_copy():
    use_triton("loss", torch.ones(1))
    ran().clear()
    assert ran() == {"loss": "reference: tensors on the CPU"}


def test_jit_without_triton(version):
    """Then the plain function takes the kernel's place, and nothing calls it."""
    version(None)
    assert _runtime.jit(test_forced_and_nested) is test_forced_and_nested


def test_full_precision():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a):
            assert (a @ a).dtype == torch.float32


def test_every_file_imports_and_works_without_triton():
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TRITON]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Triton is not installed"


def test_what_ran_can_be_forgotten():
    use_triton("mine", torch.zeros(1))
    assert ran()["mine"] == "reference: tensors on the CPU"
    forget()
    assert ran() == {}
