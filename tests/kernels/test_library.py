"""kernels/ as a library: what it imports, and its operators as PyTorch wants them."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcompile.kernels import _docs, _ops, _runtime
from kdcompile.kernels._registry import kernels
from kdcompile.kernels._runtime import using
from kdcompile.kernels.kd_kl import kd_kl_backward, kd_kl_forward

FOLDER = Path(__file__).parents[2] / "kernels"
FOUND = kernels()  # importing the files registers their operators
SETTINGS = [(k, s, d, m) for k in FOUND.values() for s in k.settings for d in s.dtypes
            for m in s.layouts]  # fmt: skip
NAMES = [f"{k.name} {s.name} {d} {m}".replace("torch.", "") for k, s, d, m in SETTINGS]
KEYS = [k for k in dir(torch.ops.kdcompile) if not k.startswith("_")]


class _Operators(TorchDispatchMode):
    """The names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "kdcompile":
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_imports_torch_and_triton_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [node.module]
        for name in names:
            inside = name == "kdcompile.kernels" or name.startswith("kdcompile.kernels.")
            top = name.split(".")[0]
            allowed = inside or top in {"torch", "triton"} or top in sys.stdlib_module_names
            assert allowed, f"{path.name} imports {name}"


def test_folder_is_flat():
    assert not [p for p in FOLDER.iterdir() if p.is_dir() and p.name != "__pycache__"]


def _schemas():
    names = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("kdcompile::")}
    return {name: torch._C._get_schema(*name.partition(".")[::2]) for name in sorted(names)}


def test_operators_are_functional_and_traceable():
    """They change and return no input, and each says its outputs' shapes without running."""
    assert len(_schemas()) >= len(FOUND)
    for name, schema in _schemas().items():
        assert not schema.is_mutable, name
        assert not [a for a in (*schema.arguments, *schema.returns) if a.alias_info], name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"), name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd")


@pytest.mark.parametrize(("kernel", "setting", "dtype", "layout"), SETTINGS, ids=NAMES)
def test_fake_operators_carry_a_whole_step(kernel, setting, dtype, layout):
    """Forward and backward on the meta device at the benchmark's sizes: no value, no memory."""
    case = _docs.sized(setting, dtype, layout)
    with using("triton"), _Operators() as operators:
        loss = case.kernel()
        assert _runtime.ran()[kernel.name] == "triton"
        assert loss.is_meta
        gradients = torch.autograd.grad(loss, case.leaves, torch.ones_like(loss)) if (
            case.leaves
        ) else ()  # fmt: skip
    assert operators.names
    for leaf, gradient in zip(case.leaves, gradients, strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.dtype == leaf.dtype
        assert gradient.stride() == leaf.stride()


@pytest.mark.parametrize(("kernel", "setting", "dtype", "layout"), SETTINGS, ids=NAMES)
def test_references_carry_a_whole_step(kernel, setting, dtype, layout):
    """The other side of the benchmark fits the same leaves, and gives the same kind of result."""
    case = _docs.sized(setting, dtype, layout)
    loss = case.reference()
    with using("triton"):
        ours = case.kernel()
    assert (loss.shape, loss.dtype) == (ours.shape, ours.dtype)
    if case.leaves:
        assert len(torch.autograd.grad(loss, case.leaves, torch.ones_like(loss))) > 0


@pytest.mark.skipif(_runtime.triton_problem() is not None, reason=str(_runtime.triton_problem()))
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 5)], ids=str)
def test_opcheck(shape, device):
    student, teacher = torch.randn(shape, device=device), torch.randn(shape, device=device)
    if len(shape) == 4:
        student = student.contiguous(memory_format=torch.channels_last)
    options = (2.0, None, 0, shape[1], None, False, False)
    forward = (student, teacher, *options)
    torch.library.opcheck(kd_kl_forward, forward)
    _, rows = kd_kl_forward(*forward)
    backward = (student, teacher, rows, torch.ones((), device=device), *options)
    torch.library.opcheck(kd_kl_backward, backward)


def test_registering_an_operator():
    """The name loses its underscores; an argument without a type is refused at once."""

    @_ops.operator(lambda x, factor: torch.empty_like(x))
    def _times_for_the_test_(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    assert _times_for_the_test_ is torch.ops.kdcompile.times_for_the_test.default
    assert torch.equal(_times_for_the_test_(torch.ones(2), 3.0), torch.full((2,), 3.0))
    assert _times_for_the_test_(torch.ones(2, device="meta"), 3.0).is_meta
    with pytest.raises(ValueError, match="type annotation"):
        _ops.operator(lambda x: x)(lambda x: x)
