"""What a network computes and moves, op by op, found without computing anything.

The network is run on PyTorch's meta device (shapes only) while every aten op that reaches the
dispatcher is recorded. Ops that an inference compiler folds into the convolution or matrix product
before them are marked `fused`: they cost no kernel and no traffic, except for a second operand.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdcompile.core.errors import KDError

Kind = Literal["conv", "gemm", "pool", "elementwise", "other"]

_GEMM = {"mm", "addmm", "bmm", "baddbmm"}
_POOL = {
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "mean", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "amax", "sum",
}  # fmt: skip
_POINTWISE = {
    "relu", "leaky_relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "silu",
    "gelu", "elu", "hardsigmoid", "hardswish", "mish", "softplus", "_prelu_kernel", "neg", "exp",
    "add", "sub", "mul", "div", "native_batch_norm", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_no_update",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One aten op: its multiply-adds and the elements that it reads and writes.

    A fused op has no multiply-adds and no output of its own; `in_elements` is what it reads beside
    the tensor that it is applied to. For a matrix product the channels are its inner and its last
    size. Biases are left out of `macs` and `weight_elements`.
    """

    kind: Kind
    macs: int
    in_elements: int
    out_elements: int
    weight_elements: int
    out_channels: int
    in_channels: int
    groups: int
    fused: bool


def operations(module: nn.Module, shape: Sequence[int]) -> list[Operation]:
    """Every op of `module(image)` for one float32 input of `shape`, in the order of execution.

    The module itself is left as it is; a copy in evaluation mode is run on the meta device.

    Raises:
        KDError: the module cannot be run on shapes alone, or not at this shape.
    """
    shadow = copy.deepcopy(module).to("meta").eval()
    recorder = _Recorder()
    try:
        with torch.no_grad(), recorder:
            shadow(torch.empty(tuple(shape), device="meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise KDError(
            "cost-shape",
            f"{type(module).__name__} cannot be traced at input shape {list(shape)}: {error}",
            where="[export] shape",
            fix="give a shape that the network takes; its forward must not read tensor values",
        ) from error
    return recorder.found


def macs(ops: Sequence[Operation]) -> int:
    """Multiply-adds of all ops, biases excluded."""
    return sum(op.macs for op in ops)


def params(module: nn.Module) -> int:
    """Number of parameters, biases included, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps one `Operation` for each aten op that does work."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Operation] = []
        # id -> the tensor itself: holding it keeps the id from being given to another one
        self._product: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the op on the meta device and record it."""
        result = func(*args, **(kwargs or {}))
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,))]
        inputs = [a for a in flat if isinstance(a, Tensor)]
        outputs = [result] if isinstance(result, Tensor) else list(result or ())
        outputs = [o for o in outputs if isinstance(o, Tensor)]
        if inputs and outputs and _is_view(func):
            if id(inputs[0]) in self._product:
                self._product.update((id(view), view) for view in outputs)
        elif inputs and outputs:
            self._record(func.overloadpacket.__name__, args, inputs, outputs[0])
        return result

    def _record(self, name: str, args: Sequence[Any], inputs: list[Tensor], out: Tensor) -> None:
        base = name.rstrip("_")  # in place or not
        if base == "convolution":
            self.found.append(_convolution(args, out))
            self._product[id(out)] = out
        elif base in _GEMM:
            self.found.append(_gemm(inputs, out))
            self._product[id(out)] = out
        elif base in _POINTWISE and not _of_its_own_statistics(base, args):
            self._pointwise(base, inputs, out)
        else:
            self.found.append(_plain("pool" if base in _POOL else "other", inputs, out))

    def _pointwise(self, base: str, inputs: list[Tensor], out: Tensor) -> None:
        chained = next((x for x in inputs if id(x) in self._product), None)
        if chained is None:
            self.found.append(_plain("elementwise", inputs, out))
            return
        # running statistics and affine terms of a batch-norm are constants of the kernel
        others = [] if "batch_norm" in base else [x for x in inputs if x is not chained]
        second = sum(x.numel() for x in others)
        self.found.append(Operation("elementwise", 0, second, 0, 0, _channels(out), 0, 1, True))
        self._product[id(out)] = out


def _is_view(func: Any) -> bool:
    """Whether the op only re-labels memory (its result aliases an input that it does not write)."""
    returns = func._schema.returns
    aliases = [r.alias_info is not None and not r.alias_info.is_write for r in returns]
    named = func.overloadpacket.__name__ in {"_unsafe_view", "detach", "lift_fresh"}
    return named or (bool(aliases) and all(aliases))


def _of_its_own_statistics(base: str, args: Sequence[Any]) -> bool:
    """A normalisation by the image's own mean (instance-norm) cannot be folded into a product."""
    return "batch_norm" in base and any(arg is True for arg in args)


def _channels(tensor: Tensor) -> int:
    return int(tensor.shape[1]) if tensor.dim() > 1 else 1


def _convolution(args: Sequence[Any], out: Tensor) -> Operation:
    image, weight, transposed, groups = args[0], args[1], bool(args[6]), int(args[8])
    taps = math.prod(weight.shape[1:])  # multiply-adds per output (transposed: per input) element
    work = (image if transposed else out).numel() * taps
    return Operation(
        "conv", work, image.numel(), out.numel(), weight.numel(),
        _channels(out), _channels(image), groups, False,
    )  # fmt: skip


def _gemm(inputs: list[Tensor], out: Tensor) -> Operation:
    left, right = inputs[-2], inputs[-1]  # addmm and baddbmm begin with the bias
    inner = int(left.shape[-1])
    return Operation(
        "gemm", out.numel() * inner, left.numel(), out.numel(), right.numel(),
        int(out.shape[-1]), inner, 1, False,
    )  # fmt: skip


def _plain(kind: Kind, inputs: list[Tensor], out: Tensor) -> Operation:
    read = sum(x.numel() for x in inputs)
    return Operation(kind, 0, read, out.numel(), 0, _channels(out), _channels(inputs[0]), 1, False)
