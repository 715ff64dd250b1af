"""Files of a teacher's narrower students, from the teacher's own and from runs on shapes alone."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcompile.latency_model.network_cost import Network
from kdcompile.models.rows import ports_of
from kdcompile.onnx_graph.resized import Recorded, Shape, resized
from kdcompile.onnx_graph.shapes import without_weights

# where an operator has its weight among its arguments
WEIGHT = {"aten::convolution": 1, "aten::addmm": 2, "aten::mm": 1}
GROUPS = 8  # of a convolution


class Narrowed:
    """The students of a teacher, each with the file that it would be exported as.

    That of the teacher's own code at other widths is the teacher's with other sizes. Any other
    student is exported, and so is one whose file does not follow from the runs of both.
    """

    def __init__(self, teacher: Network) -> None:
        self.teacher = teacher

    def network(self, student: nn.Module, architecture: Mapping[str, Any]) -> Network:
        """A student, in inference mode, with its file.

        Raises:
            KDError: of the export, where there has to be one.
        """
        pixels = self.teacher.takes_pixels
        narrowed = self.narrowed(student, architecture)
        return narrowed or Network(student, self.teacher.shape, takes_pixels=pixels)

    def narrowed(self, student: nn.Module, architecture: Mapping[str, Any]) -> Network | None:
        """A student in inference mode whose file follows from the teacher's; None of any other."""
        is_narrowed = architecture["family"] == "shrink" and not architecture.get("dropped")
        shape, run = self.teacher.shape, self._run
        if not is_narrowed or run is None:
            return None
        own, pixels = recorded(student, shape), self.teacher.takes_pixels
        model = None if own is None else resized(self._light, shape, run, own)
        return None if model is None else Network(student, shape, model, pixels)

    @cached_property
    def _run(self) -> Recorded | None:
        return recorded(self.teacher.module, self.teacher.shape)

    @cached_property
    def _light(self) -> ModelProto:
        return without_weights(self.teacher.model)


def recorded(network: nn.Module, shape: Sequence[int]) -> Recorded | None:
    """The run; None of a network of any tensors, or one that does not run on shapes alone.

    Args:
        network: in inference mode; not changed.
        shape: of its input.
    """
    if ports_of(network) is not None:
        return None
    try:
        with torch.no_grad(), torch.device("meta"):
            shadow = copy.deepcopy(network).to("meta")
            with _Recorder(shadow) as run:
                shadow(torch.empty(*shape))
    except Exception:  # whatever the user's forward raises on tensors without numbers
        return None
    return Recorded(tuple(run.weights), tuple(run.given))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {_storage(parameter) for parameter in network.parameters()}
        self.weights: list[tuple[Shape, int]] = []
        self.given: list[tuple[str, tuple[Shape, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name
        place = WEIGHT.get(name)
        if place is not None and _storage(args[place]) in self._own:
            groups = args[GROUPS] if name == "aten::convolution" else 1
            self.weights.append((tuple(args[place].shape), groups))
        shapes = [tuple(one.shape) for one in tree_leaves(made) if isinstance(one, Tensor)]
        self.given.append((name, tuple(shapes)))
        return made


def _storage(tensor: Tensor) -> int:
    """Tensors that share memory have the same, also where there is none."""
    return int(tensor.untyped_storage()._cdata)
