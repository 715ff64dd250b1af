"""Split a teacher into consecutive stages, for a student that is made stage by stage.

The teacher runs once on tensors without values. A tensor is a cut where an activation
gave it and every way from the image to the output leads through it. Of the cuts in a row that
have one size and one dilation, the last ends a stage.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcompile.core.errors import KDError
from kdcompile.models.resize import copied

ACTIVATIONS = {
    "relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "leaky_relu", "leaky_relu_", "elu",
    "elu_", "silu", "silu_", "gelu", "hardswish", "hardswish_", "mish",
}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """The end of a stage.

    `name` is a module that runs once and whose output ends the stage, the outermost of them;
    `stride` is in pixels of the image; `depth` is the number of convolutions on the longest way
    through the stage; `dilation` is that of the stage's convolutions of more than one pixel.
    """

    name: str
    stride: int
    channels: int
    depth: int
    dilation: int


def cuts(teacher: nn.Module, shape: Sequence[int]) -> list[Cut]:
    """The teacher's stages, in their order, up to where an image grows again.

    Args:
        teacher: in inference mode.
        shape: input [N, C, H, W].

    Raises:
        KDError: `stages-unknown`: there are fewer than two, or the forward pass needs values.
    """
    found: list[tuple[_Value, int]] = []  # the end of each stage so far, with its dilation
    for value, dilation in _stage_ends(*_record(teacher, shape)):
        if found:
            last, before = found[-1]
            if value.size[0] > last.size[0]:
                break
            if (value.size, dilation) == (last.size, before):
                found.pop()
        found.append((value, dilation))
    if len(found) < 2:
        raise _unknown("fewer than two activations, at another size or dilation, end a stage")
    depths = [0, *(value.depth for value, _ in found)]
    return [
        Cut(
            name=value.module,
            stride=value.stride,
            channels=value.channels,
            depth=value.depth - before,
            dilation=dilation,
        )
        for (value, dilation), before in zip(found, depths, strict=False)
    ]


@dataclass(eq=False)
class _Value:
    """A tensor that depends on the image, in the order in which they were computed."""

    through: int  # bit i is set where every way from the image here leads through value i
    depth: int
    stride: int
    size: tuple[int, ...]
    channels: int
    activated: bool
    dilation: int  # of the convolution of more than one pixel that gave it; 0 of anything else
    module: str = ""


def _stage_ends(values: list[_Value], output: _Value) -> Iterator[tuple[_Value, int]]:
    """The activations that dominate the output and that a module gave, with their dilation."""
    dilation, widest = 1, 0
    for index, value in enumerate(values):
        widest = max(widest, value.dilation)
        if output.through >> index & 1 and value.activated and value.module and value.size:
            dilation, widest = widest or dilation, 0
            yield value, dilation


def _record(teacher: nn.Module, shape: Sequence[int]) -> tuple[list[_Value], _Value]:
    """Every tensor that depends on the image, and the output."""
    recorder, teacher = _Recorder(), copied(teacher)
    device = next((p.device for p in teacher.parameters()), None)
    try:
        with ExitStack() as stack:
            for name, module in teacher.named_modules():
                if name:
                    stack.enter_context(module.register_forward_hook(recorder.named(name)))
            stack.enter_context(torch.no_grad())
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            image = torch.empty(*shape, device=device)
            recorder.start(image)
            with recorder:
                output = teacher(image)
    except Exception as error:  # whatever a network's own code raises without values
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _unknown(f"its forward pass fails: {why}") from error
    last = recorder.index.get(id(output))
    if last is None:
        raise _unknown("its output is not one tensor that depends on the image")
    for name, index in recorder.ends.items():  # an outer module follows those inside
        if recorder.calls[name] == 1:
            recorder.values[index].module = name
    return recorder.values, recorder.values[last]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes who computes what from what; tensors are known by their identity and kept alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[_Value] = []
        self.index: dict[int, int] = {}
        self.calls: Counter[str] = Counter()
        self.ends: dict[str, int] = {}
        self._alive: list[Tensor] = []

    def start(self, image: Tensor) -> None:
        self._add(image, [], "", 0, 0)

    def named(self, name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.calls[name] += 1
            if id(output) in self.index:
                self.ends[name] = self.index[id(output)]

        return note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [self.index[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self.index]
        if read:
            name = func.overloadpacket.__name__
            convolves = int(name == "convolution")
            wide = convolves and max(args[1].shape[2:], default=1) > 1
            dilation = max(args[5]) if wide else 0
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._add(tensor, read, name, convolves, dilation)
        return result

    def _add(
        self, tensor: Tensor, read: list[int], name: str, convolves: int, dilation: int
    ) -> None:
        sources = [self.values[index] for index in read]
        through = sources[0].through if sources else 0
        for source in sources:
            through &= source.through
        shape = tuple(tensor.shape)
        is_image = len(shape) == 4
        size = shape[2:] if is_image else ()
        value = _Value(
            through=through | 1 << len(self.values),
            depth=max((source.depth for source in sources), default=0) + convolves,
            stride=_stride(sources, size),
            size=size,
            channels=shape[1] if is_image else 0,
            activated=name in ACTIVATIONS,
            dilation=dilation,
        )
        self.index[id(tensor)] = len(self.values)
        self.values.append(value)
        self._alive.append(tensor)


def _stride(sources: Sequence[_Value], size: tuple[int, ...]) -> int:
    """Pixels of the image a cell: step by step, as each step rounds its size up or down."""
    widest = max(sources, key=lambda source: source.size[:1], default=None)
    if widest is None or not widest.size or not size:
        return 1
    before, now = widest.size[0], size[0]
    if now > before:
        return max(1, widest.stride // round(now / before))
    return widest.stride * round(before / now)


def _unknown(why: str) -> KDError:
    return KDError(
        "stages-unknown",
        f"the teacher does not fall into stages: {why}",
        where="[teacher] model",
        fix='set student.family = "shrink", or write the student yourself: '
        'student.family = "student.py:build"',
    )
