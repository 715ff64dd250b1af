"""From the nodes of an ONNX graph to a `torch.fx` module whose layers are torch's own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcompile.core.errors import KDError
from kdcompile.models.onnx_import import (  # noqa: F401  # each registers its operators
    attention,
    elementwise,
    gathering,
    layers,
    recurrent,
    reductions,
    reshaping,
    windows,
)
from kdcompile.models.onnx_import.arguments import (
    as_results,
    constant_of,
    example_of,
    in_arguments,
    in_options,
    item_of,
    values_in,
)
from kdcompile.models.onnx_import.graph_file import (
    GraphFile,
    attributes_of,
    operators,
    readers_of,
    tensor_of,
)
from kdcompile.models.onnx_import.host import host_call
from kdcompile.models.onnx_import.names import identifier, module_name, place
from kdcompile.models.onnx_import.shapes import sizes_of
from kdcompile.models.onnx_import.values import OPERATORS, Call, Dim, Node, Value, to_tensor

WITHOUT_NODES = ("Constant", "If")  # that the converter itself reads


class Converter:
    """Follows the nodes in their order with example tensors, which have shapes and no values."""

    def __init__(self, file: GraphFile, shapes: Mapping[str, Sequence[int]]) -> None:
        """Nothing is converted yet.

        Args:
            file: the network.
            shapes: of every input, all numbers.
        """
        self._file, self._shapes = file, shapes
        self._graph, self._root = fx.Graph(), nn.Module()
        self._values: dict[str, Value] = {}
        self._readers: Mapping[str, list[NodeProto]] = {}
        self._skipped: set[int] = set()
        self._shared: dict[str, tuple[str, nn.Module]] = {}
        self._tensors: dict[int, fx.Node] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def run(self) -> nn.Module:
        """The module, in inference mode.

        Raises:
            KDError: `onnx-operator` or `onnx-node`.
        """
        for name, _, kind in self._file.inputs():
            node = self._graph.placeholder(identifier(name))
            with self._mode:
                example = torch.empty(tuple(self._shapes[name]), dtype=kind)
            self._values[name] = Value(name, example, node=node)
        with torch.no_grad():
            self._follow(self._file.graph)
        outputs = [self._output(value.name) for value in self._file.graph.output]
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        module = fx.GraphModule(self._root, self._graph, "OnnxNetwork")
        module.graph.eliminate_dead_code()
        module.recompile()
        module.delete_all_unused_submodules()
        return _plain(module).eval().float()

    def _output(self, name: str) -> fx.Node:
        value = self._values[name]
        return self._node_of(self._as_tensor(value) if value.is_host else value)

    def _follow(self, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            self._keep(tensor.name, self._tensor(tensor))
        self._refuse_unknown(graph.node)
        self._readers = readers_of(graph)
        for proto in graph.node:
            if proto.op_type == "Constant":  # before all others, which look ahead
                self._keep(proto.output[0], self._constant(attributes_of(proto)))
        for proto in graph.node:
            if id(proto) in self._skipped or proto.op_type == "Constant":
                continue
            if proto.op_type == "If":
                self._branch(proto)
            else:
                self._convert(proto)

    def _refuse_unknown(self, nodes: Sequence[NodeProto]) -> None:
        unknown: dict[str, str] = {}
        for name, where in operators(nodes):
            if name not in OPERATORS and name not in WITHOUT_NODES:
                unknown.setdefault(name, where)
        if unknown:
            raise KDError(
                "onnx-operator",
                f"the network has operators that are not read: {', '.join(sorted(unknown))}",
                where="; ".join(f"{name} is {where!r}" for name, where in unknown.items()),
                fix="export the network in other operators, or give the PyTorch network as "
                "teacher.model",
            )

    def _tensor(self, proto: TensorProto) -> Tensor:
        return tensor_of(proto, self._file.path.parent)

    def _constant(self, attributes: Mapping[str, Any]) -> Tensor:
        (value,) = attributes.values()
        return self._tensor(value) if isinstance(value, TensorProto) else torch.tensor(value)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self._values[name] = Value(name, tensor, constant=tensor)

    def _branch(self, proto: NodeProto) -> None:
        """One branch of a condition that constants or sizes decide."""
        condition = self._values[proto.input[0]]
        chosen = condition.numbers() if condition.constant is not None else condition.example
        if isinstance(chosen, Tensor):
            raise KDError(
                "onnx-operator",
                "the network has an If whose condition depends on the values of its inputs",
                where=proto.name or proto.output[0],
                fix="export the network for one case of it",
            )
        chosen = chosen[0] if isinstance(chosen, list) else chosen
        branch: GraphProto = attributes_of(proto)["then_branch" if chosen else "else_branch"]
        before = self._readers
        self._follow(branch)
        self._readers = before
        for name, inner in zip(proto.output, branch.output, strict=True):
            self._values[name] = self._values[inner.name]

    def _convert(self, proto: NodeProto) -> None:
        inputs = [self._values[name] if name else None for name in proto.input]
        attributes = attributes_of(proto)
        attributes = {
            n: self._tensor(v) if isinstance(v, TensorProto) else v for n, v in attributes.items()
        }
        node = Node(
            proto, attributes, inputs, self._file.opset, lambda name: self._readers.get(name, ()),
            lambda name: self._values[name].constant if name in self._values else None,
            lambda reader: self._skipped.add(id(reader)),
        )  # fmt: skip
        with self._explained(node):
            call = host_call(node)
            if call is None:
                if proto.op_type != "Shape":
                    node.inputs = self._tensors_for(node)
                call = OPERATORS[proto.op_type](node)
            self._keep_results(call, proto)

    @contextmanager
    def _explained(self, node: Node) -> Iterator[None]:
        try:
            yield
        except KDError:
            raise
        except Exception as error:  # torch's, of shapes that do not fit, and a file's own faults
            inputs = ", ".join(str(value.shape) for value in node.inputs if value is not None)
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            raise KDError(
                "onnx-node",
                f"{node.proto.op_type} does not take inputs of {inputs}: {reason}",
                where=f"{node.name} of {self._file.path}",
                fix="give export.shape as the network in the file takes it; if that is so, check "
                "the file with onnx.checker.check_model",
            ) from error

    def _tensors_for(self, node: Node) -> list[Value | None]:
        """The inputs; numbers computed from sizes as a tensor where the operator reads one."""
        kinds = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2), "Resize": (3,), "Tile": (1,),
                 "ConstantOfShape": (0,), "Range": (0, 1, 2), "Split": (1,),
                 "Gather": (1,)}.get(node.proto.op_type, ())  # fmt: skip
        return [
            self._as_tensor(value)
            if value is not None and value.is_host and place not in kinds
            else value
            for place, value in enumerate(node.inputs)
        ]

    def _as_tensor(self, value: Value) -> Value:
        """Of a file whose sizes are all numbers they are constants too."""
        if all(isinstance(n, int) for _, shape, _ in self._file.inputs() for n in shape):
            made = torch.tensor(value.example)
            return Value(value.name, made, constant=made)
        return self._made(Call(to_tensor, [value]), value.name, NodeProto())

    def _keep_results(self, call: Call, proto: NodeProto) -> None:
        names = list(proto.output) if call.outputs is None else list(call.outputs)
        whole = self._made(call, names[0], proto)
        if not isinstance(whole.example, tuple):
            self._values[names[0]] = whole
            return
        for index, name in enumerate(names):
            if not name:
                continue
            if whole.constant is not None:
                self._keep(name, whole.constant[index])
            else:
                assert whole.node is not None, "it is computed"
                node = self._graph.call_function(item_of, (whole.node, index))
                self._values[name] = Value(name, whole.example[index], node=node)

    def _made(self, call: Call, name: str, proto: NodeProto) -> Value:
        """The result of a call, computed where all of it is constant."""
        arguments = [self._inner(one, name, proto) for one in call.arguments]
        if call.target is None:
            found: Value = arguments[0]
            return found
        options = {n: self._inner(v, name, proto) for n, v in call.options.items()}
        values = [*values_in(arguments), *values_in(list(options.values()))]
        if all(value.constant is not None for value in values):
            made = as_results(call.target(*in_arguments(arguments, constant_of), **options))
            made = made if isinstance(made, Tensor | tuple) else torch.tensor(made)
            return Value(name, made, constant=made)  # type: ignore[arg-type]
        path, target = "", call.target
        if isinstance(target, nn.Module):
            path, target = self._module(target.eval(), call.shared, proto)
        with self._mode:
            made = target(*in_arguments(arguments, example_of), **in_options(options, example_of))
        example = [Dim(size) for size in made] if target is sizes_of else as_results(made)
        inputs = tuple(in_arguments(arguments, self._node_of))
        more = in_options(options, self._node_of)
        add: Any = self._graph.call_module if path else self._graph.call_function
        return Value(name, example, node=add(path or target, inputs, more))

    def _inner(self, argument: Any, name: str, proto: NodeProto) -> Any:
        return self._made(argument, name, proto) if isinstance(argument, Call) else argument

    def _module(self, module: nn.Module, shared: str, proto: NodeProto) -> tuple[str, nn.Module]:
        """Where a module is in the network; the one that has the same weights, where one has."""
        if shared in self._shared:
            return self._shared[shared]
        weights = proto.input[0 if proto.op_type == "Gather" else 1] if len(proto.input) > 1 else ""
        path = place(self._root, module_name(proto, weights), module)
        if shared:
            self._shared[shared] = path, module
        return path, module

    def _node_of(self, value: Value) -> fx.Node:
        """What gives a value; a constant becomes a parameter, or a buffer where none is learnt."""
        if value.node is not None:
            return value.node
        tensor = value.constant
        assert tensor is not None, "what is not computed is constant"
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = self._stored(value.name, tensor)
        value.node = self._tensors[id(tensor)]
        return value.node

    def _stored(self, name: str, tensor: Tensor) -> fx.Node:
        path, number = identifier(name), 0
        while hasattr(self._root, path):
            number += 1
            path = f"{identifier(name)}_{number}"
        kept = tensor.detach().clone()
        if kept.is_floating_point() and kept.numel() > 1 and bool(kept.isfinite().all()):
            self._root.register_parameter(path, nn.Parameter(kept))
        else:
            self._root.register_buffer(path, kept)
        first = next(iter(self._graph.nodes))
        with self._graph.inserting_before(first):
            return self._graph.get_attr(path)


def _plain(module: fx.GraphModule) -> nn.Module:
    """A module of a class of its own with the layers and the forward pass of a graph's.

    A graph module writes its code again into its class whenever it is copied, which loses what
    others put there.
    """
    kind = type("OnnxNetwork", (nn.Module,), {"forward": type(module).forward})
    network: nn.Module = kind()
    kept = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
    vars(network).update({name: vars(module)[name] for name in kept})
    return network
