"""Runners of the forms of a network that are compared: each gives its output and inner tensors.

ModuleSide   PyTorch; tensors are the outputs of its modules, by path
ProgramSide  what torch.export made; tensors are the nodes of its graph
OnnxSide     an ONNX file in ONNX Runtime here
EngineSide   an engine at a place; to see a tensor an engine is built anew with it as output
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.backends import engine
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.debug.tensors import exposed, stored
from kdcompile.onnx_graph.session import cpu_session, feeds_of
from kdcompile.onnx_graph.shapes import element_types
from kdcompile.remote.open import Place

if TYPE_CHECKING:
    import torch
    from torch import Tensor, fx, nn
    from torch.export import ExportedProgram

Floats = NDArray[np.float32]
PROBE = "parity-probe"  # the name that a rebuilt engine is loaded under


class Side(ABC):
    """One form of the network.

    output: the name of its output among its tensors.
    levels: of a search that one run answers: more than one where a run is dear.
    """

    output: str
    levels = 1

    @abstractmethod
    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """The output and some more tensors, by name.

        Args:
            image: float32 [1, C, H, W].
            tensors: of the network, floating point.

        Raises:
            KDError: the place's, or `parity-refused`, ONNX Runtime does not take the network.
        """


class OnnxSide(Side):
    """An ONNX network in ONNX Runtime, as written, half tensors stored as half.

    Args:
        model: one input, one output.
        optimised: as ONNX Runtime itself would run it, where it is what ships.
    """

    def __init__(self, model: ModelProto, optimised: bool = False) -> None:
        self.model, self.optimised = model, optimised
        self.kinds = element_types(model)
        self._base = model if optimised else stored(model, self.kinds)
        self.output = model.graph.output[0].name
        self._tensors: tuple[str, ...] | None = None
        self._session: Any = None
        self._names: dict[str, str] = {}

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`; the session of the last tensors is kept."""
        try:
            if self._tensors != tuple(tensors):
                self._open(tuple(tensors))
            wanted = list(self._names)
            found = self._session.run(list(self._names.values()), feeds_of(self._session, image))
        except KDError:
            raise
        except Exception as error:  # ONNX Runtime's failures share no other base
            raise KDError(
                "parity-refused",
                f"ONNX Runtime does not run the network: {str(error).strip().splitlines()[0]}",
                where=", ".join(tensors) or "the network's output",
                fix="export it again: kdcompile export; kdcompile run shows whether it runs at all",
            ) from error
        return {name: np.asarray(v, np.float32) for name, v in zip(wanted, found, strict=True)}

    def _open(self, tensors: tuple[str, ...]) -> None:
        model, names = exposed(self._base, (self.output, *tensors), self.kinds)
        self._session, self._names, self._tensors = None, {}, None
        self._session = cpu_session(model, optimised=self.optimised)
        self._names, self._tensors = names, tensors


class EngineSide(Side):
    """An engine at a place. An exposed tensor changes what is fused around it.

    To look at tensors takes a build, as long as that of the engine itself: seven in one.

    Args:
        place: open.
        board: its lasting facts.
        model: the ONNX network that the engine was built from.
        network: the name that the deployed engine is loaded under.
        precision: that it computes in.
        settings: how it was built; not deterministic, which binds a build to its own kernels.
        profile: smallest, typical and largest input shape.
    """

    levels = 3

    def __init__(
        self,
        place: Place,
        board: Board,
        model: ModelProto,
        network: str,
        precision: str,
        settings: Compile,
        profile: Sequence[Sequence[int]],
    ) -> None:
        self.place, self.board, self.model = place, board, model
        self.network, self.precision = network, precision
        self.settings, self.profile = settings, profile
        self.output = model.graph.output[0].name
        self._kinds = element_types(model)
        self._tensors: tuple[str, ...] = ()
        self._names: dict[str, str] = {}

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`; without tensors the deployed engine itself, else one that is built anew."""
        inputs = {engine.INPUT: image}
        if not tensors:
            found = self.place.run(inputs, self.network)
            return {self.output: np.asarray(next(iter(found.values())), np.float32)}
        if self._tensors != tuple(tensors):
            self._build(tuple(tensors))
        found = self.place.run(inputs, PROBE)
        return {name: np.asarray(found[given], np.float32) for name, given in self._names.items()}

    def _build(self, tensors: tuple[str, ...]) -> None:
        self._tensors = ()
        model, names = exposed(self.model, (self.output, *tensors), self._kinds)
        with scratch() as folder:
            path = Path(folder) / "probe.onnx"
            onnx.save(model, path)
            built = engine.build(
                self.place, self.board, path, self.precision, self.settings, self.profile
            )
            self.place.call("load", path=built.there, name=PROBE)
            # only this search wants it: a board's disk is small
            for there in (built.there, f"{built.there}.json", self.place.put(path)):
                self.place.call("remove", path=there)
        self._names, self._tensors = names, tensors


class ModuleSide(Side):
    """A PyTorch module in inference mode on the CPU, seen by forward hooks.

    Tensors are the paths of its modules; `once` are those that run exactly once an inference and
    give one tensor, so that the path names a value.
    """

    output = "output"

    def __init__(self, module: "nn.Module", image: Floats) -> None:
        self.module = module
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

        hooks = [
            self.module.get_submodule(path).register_forward_hook(keeper(path)) for path in tensors
        ]
        try:
            with torch.inference_mode():
                found[self.output] = self.module(torch.from_numpy(image)).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return found


class ProgramSide(Side):
    """An exported program, run node by node; tensors are the names of its graph's nodes."""

    def __init__(self, program: "ExportedProgram") -> None:
        self.program = program
        self._graph = program.module()
        self.output = str(program.graph_signature.user_outputs[0])

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`."""
        import torch

        wanted = {self.output, *tensors}
        found = run_graph(self._graph, torch.from_numpy(image), wanted)
        return {name: value.float().numpy() for name, value in found.items()}


def run_graph(
    graph: "torch.nn.Module", image: "Tensor", wanted: "set[str]"
) -> "Mapping[str, Tensor]":
    """Some nodes' values of a `torch.fx` graph module for one input, by the nodes' names."""
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
        Recorder(graph).run(image)
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
