"""Runners of the two forms of a network that PyTorch has (`runners`).

ModuleSide   the module; tensors are the outputs of its modules, by path
ProgramSide  what torch.export made; tensors are the nodes of its graph
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.ports import Ports, as_row
from kdcompile.debug.runners import Side
from kdcompile.debug.tensors import WHOLE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx, nn
    from torch.export import ExportedProgram

Floats = NDArray[np.float32]


class ModuleSide(Side):
    """A PyTorch module in inference mode on the CPU, seen by forward hooks.

    Tensors are the paths of its modules; `once` are those that run exactly once an inference and
    give one tensor, so that the path names a value. The outputs of one that runs on rows are
    `output:NAME`: a module may be called as an output is.
    """

    output = "output"

    def __init__(self, module: "nn.Module", image: Floats) -> None:
        from kdcompile.models.rows import output_ports, ports_of

        self.module, ports = module, ports_of(module)
        self.outputs = None if ports is None else output_ports(module, ports)
        if self.outputs is not None:
            self.output = WHOLE
            self.ends = tuple(f"output:{name}" for name in self.outputs.names)
        calls: dict[str, int] = {}
        paths = [path for path, _ in module.named_modules() if path]
        self.once: tuple[str, ...] = ()
        self._run(image, paths, calls)
        self.once = tuple(path for path in paths if calls.get(path) == 1)

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`."""
        return self._run(image, tensors, {})

    def _run(
        self, image: Floats, tensors: Sequence[str], calls: dict[str, int]
    ) -> dict[str, Floats]:
        import torch

        found: dict[str, Floats] = {}

        def keeper(path: str) -> "Any":
            def keep(_module: "nn.Module", _inputs: Any, value: Any) -> None:
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    calls[path] = calls.get(path, 0) + 1
                    found[path] = value.detach().float().numpy().copy()

            return keep

        inner = [path for path in tensors if path not in (self.output, *self.ends)]
        hooks = [
            self.module.get_submodule(path).register_forward_hook(keeper(path)) for path in inner
        ]
        try:
            with torch.inference_mode():
                found[self.output] = self.module(torch.from_numpy(image)).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        if self.outputs is not None:
            parts = self.outputs.unpack(found[WHOLE])
            found.update(zip(self.ends, parts.values(), strict=True))
        return found


class ProgramSide(Side):
    """An exported program, run node by node; tensors are the names of its graph's nodes.

    Args:
        program: what torch.export made.
        inputs: of a network that runs on rows.
    """

    def __init__(self, program: "ExportedProgram", inputs: Ports | None = None) -> None:
        self.program, self._inputs = program, inputs
        self._graph = program.module()
        names = tuple(str(name) for name in program.graph_signature.user_outputs)
        self.ends = () if inputs is None else names
        self.output = names[0] if inputs is None else WHOLE

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`."""
        import torch

        from kdcompile.models.rows import tensors_of

        given: tuple[Tensor, ...] = (torch.from_numpy(image),)
        wanted = {self.output, *self.ends, *tensors}
        if self._inputs is not None:
            given = tuple(tensors_of(given[0], self._inputs).values())
        values = run_graph(self._graph, given, wanted)
        found = {name: value.float().numpy() for name, value in values.items()}
        if self.ends:
            found[WHOLE] = as_row([found[name] for name in self.ends])
        return found


def run_graph(
    graph: "torch.nn.Module", inputs: "Sequence[Tensor]", wanted: "set[str]"
) -> "Mapping[str, Tensor]":
    """Some nodes' values of a `torch.fx` graph module for its inputs, by the nodes' names."""
    import torch

    found: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: "fx.Node") -> Any:
            value = super().run_node(node)
            if node.name in wanted and isinstance(value, torch.Tensor):
                found[node.name] = value.detach().clone()
            return value

    assert isinstance(graph, torch.fx.GraphModule), "an exported program unlifts to one"
    with torch.inference_mode():
        Recorder(graph).run(*inputs)
    return found


def exported_program(module: "nn.Module", profile: Sequence[Sequence[int]]) -> "ExportedProgram":
    """The program that the ONNX file is written from; its nodes have the ONNX tensors' names.

    Args:
        module: takes float32 [N, C, H, W]; in inference mode, on the CPU.
        profile: smallest, typical and largest input shape.

    Raises:
        KDError: `export-failed`, `network-forward` or `export-dynamic`.
    """
    import torch

    from kdcompile.export.onnx_file import traced
    from kdcompile.export.refused import refused

    try:
        made = traced(module, profile)
    except torch.onnx.OnnxExporterError as error:
        raise refused(error, module, profile) from error
    assert made.exported_program is not None, "dynamo exports through one"
    return made.exported_program
