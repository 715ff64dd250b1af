"""From a PyTorch module to a checked, simplified ONNX file."""

import functools
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line
from kdcompile.core.ports import Ports
from kdcompile.export.leftovers import prove_clean
from kdcompile.export.refused import refused, size_refused
from kdcompile.models.rows import bound, on_tensors, output_ports, ports_of, zeros
from kdcompile.onnx_graph.opset import EXPORTED_OPSET, at_opset, check, restore_scopes
from kdcompile.onnx_graph.session import LARGE_BYTES, cpu_session, run_onnx
from kdcompile.onnx_graph.shapes import without_weights

INPUT = "image"
SIMPLIFIED_TOLERANCE = 1e-4  # of the largest output: folding reorders float32 sums
ROUNDING = 5e-7  # of float32 numbers around 1, whose difference a tiny output may be
CHATTY = (
    "torch.onnx._internal.exporter._registration",  # of torchvision, for operators of nobody here
    "torch.fx.experimental.symbolic_shapes",  # of lines that it does not find
    "torch.export._trace",  # of its own classes of failures
)

Shape = Sequence[int]


def onnx_from_module(
    module: nn.Module,
    path: Path,
    shapes: tuple[Shape, Shape, Shape],
    max_opset: int = EXPORTED_OPSET,
    ir_version: int = 10,
    output: str = "density",
) -> ModelProto:
    """Write a module in inference mode as ONNX: one input `image`, one output of the given name.

    Batch, height and width are symbols where smallest and largest differ; channels are fixed.
    The file is proven to hold nothing but the module (`prove_clean`), to be within the opset, and
    to give the exporter's own output after conversion and simplification.

    Args:
        module: takes float32 [N, C, H, W] and gives one tensor, or runs on rows (`models.rows`):
            its inputs and outputs are written then; in eval mode, on the CPU.
        path: the file to write.
        shapes: smallest, typical and largest input.
        max_opset: the newest opset that the target reads.
        ir_version: the newest IR version that the target reads.
        output: the name of the output, the task's.

    Returns:
        The model as written.

    Raises:
        KDError: `export-failed`, `network-forward`, `export-dynamic`, `export-opset`,
            `export-simplify` or `export-leftover`.
    """
    raw, captured = _exported(module, shapes, output)
    x = _sample(module, shapes[0])
    if list(shapes[0]) != list(shapes[2]):
        _prove_range(module, raw, shapes)
    expected = run_onnx(raw, x)
    model = at_opset(raw, max_opset, ir_version)
    raw = without_weights(raw)  # a large network's are held once, if they can
    allowed = SIMPLIFIED_TOLERANCE * float(np.abs(expected).max())  # norms may be written out
    if max_opset < EXPORTED_OPSET and not np.allclose(run_onnx(model, x), expected, 0, allowed):
        raise KDError(
            "export-opset",
            f"conversion to opset {max_opset} changed the network's output",
            where=str(path),
            fix="upgrade onnx: its version converter is at fault",
        )
    model = _simplified(model, x, expected)
    at_opset(model, max_opset, ir_version)  # the simplifier must not have brought newer operators
    prove_clean(model, module, captured)
    restore_scopes(model, raw)
    onnx.save(model, path)
    return model


def traced(
    module: nn.Module, shapes: Sequence[Sequence[int]], output: str | None = None
) -> "torch.onnx.ONNXProgram":
    """What torch makes of a network.

    Args:
        module: takes float32 [N, C, H, W]; in inference mode, on the CPU.
        shapes: smallest, typical and largest.
        output: its name in the ONNX file; None for the exporter's own.

    Raises:
        torch.onnx.OnnxExporterError: it cannot be traced or translated.
    """
    ports = ports_of(module)
    if ports is not None:
        with on_tensors(module):
            return _traced_ports(module, ports)
    low, _, high = shapes
    names = {0: "batch", 2: "height", 3: "width"}
    dims = {
        axis: torch.export.Dim(name, min=low[axis], max=high[axis])
        for axis, name in names.items()
        if low[axis] != high[axis]
    }
    # torch.export specialises a size of 0 or 1, so trace at the largest
    sample = torch.zeros(tuple(high))
    return _program(
        module,
        (sample,),
        input_names=[INPUT],
        output_names=None if output is None else [output],
        dynamic_shapes=(dims,) if dims else None,
    )


def _traced_ports(module: nn.Module, ports: Ports) -> "torch.onnx.ONNXProgram":
    """Of a network of any tensors, at their shapes, inputs and outputs by their names."""
    arguments, named = bound(module, dict(zip(ports.names, zeros(ports), strict=True)))
    return _program(
        module,
        arguments,
        kwargs=named,
        input_names=list(ports.names),
        output_names=list(output_ports(module, ports).names),
    )


def _program(
    module: nn.Module, arguments: tuple[Tensor, ...], **settings: Any
) -> "torch.onnx.ONNXProgram":
    with quiet_exporter(), one_registry():
        import onnxscript  # noqa: F401  # what torch.onnx.export translates with, so in the key

        program = torch.onnx.export(
            module, arguments, opset_version=EXPORTED_OPSET, dynamo=True, verbose=False, **settings
        )
    assert program is not None, "without a path the exporter returns its program"
    return program


def _sample(module: nn.Module, shape: Shape) -> NDArray[np.float32]:
    """A random input of this shape, or a row of the module's inputs: whole numbers are 0 there."""
    ports, random = ports_of(module), np.random.default_rng(0)
    if ports is None:
        return random.standard_normal(tuple(shape), dtype=np.float32)
    parts = [
        random.standard_normal((1, port.size), dtype=np.float32) * port.dtype.startswith("float")
        for port in ports.ports
    ]
    return np.concatenate(parts, axis=1)


def _exported(
    module: nn.Module, shapes: tuple[Shape, Shape, Shape], output: str
) -> tuple[ModelProto, Mapping[str, object]]:
    """The exporter's file, and what it found in forward() beside parameters and buffers."""
    try:
        program = traced(module, shapes, output)
    except torch.onnx.OnnxExporterError as error:
        raise refused(error, module, shapes) from error
    model: ModelProto = program.model_proto
    ends = len(model.graph.input), len(model.graph.output)
    if ports_of(module) is None and ends != (1, 1):
        raise KDError(
            "export-failed",
            f"{ends[0]} inputs and {ends[1]} outputs, not one each",
            where=type(module).__name__,
            fix=f'use a network with one image in and one {output} out, or task.kind = "generic"',
        )
    assert program.exported_program is not None, "the exporter was given a module"
    return model, program.exported_program.constants


def _prove_range(module: nn.Module, model: ModelProto, shapes: tuple[Shape, Shape, Shape]) -> None:
    """Run the smallest size and the next, which is odd where that is even.

    torch.export turns some conditions on sizes, such as "even", into assertions that the ONNX
    file does not carry, so a network may export and still not run at every size.
    """
    low, _, high = shapes
    session = cpu_session(model)
    for more in (0, 1):
        size = tuple(min(a + more, b) for a, b in zip(low, high, strict=True))
        x = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
        try:
            with torch.inference_mode():
                expected = module(torch.from_numpy(x)).numpy()
            got = session.run(None, {INPUT: x})[0]
        except Exception as error:  # ONNX Runtime's failures share no other base
            raise size_refused(f"at {list(size)}, {first_line(error)}") from error
        if got.shape != expected.shape or not np.allclose(got, expected, rtol=1e-3, atol=1e-4):
            why = "the ONNX file gives another output than PyTorch"
            raise size_refused(f"at {list(size)}, {why}")


@contextmanager
def one_registry() -> Iterator[None]:
    """Let the exports of this process share what torch makes anew in every call, which is private.

    That is a registry of 500 translations, which none of ours alters, and the look-up of a thousand
    operators some fifty times a call: 0.3 s and 0.2 s (torch 2.13). Without them it is only slower.
    """
    import torch._export.utils as operators
    from torch.onnx._internal.exporter import _registration

    registries: Any = getattr(_registration, "ONNXRegistry", object)
    make = vars(registries).get("from_torchlib")
    look_up: Any = getattr(operators, "_materialize_cpp_cia_ops", None)
    with ExitStack() as changed:
        if isinstance(make, classmethod):
            changed.callback(setattr, registries, "from_torchlib", make)
            registries.from_torchlib = staticmethod(_shared(registries))
        if look_up is not None:
            changed.callback(setattr, operators, "_materialize_cpp_cia_ops", look_up)
            operators._materialize_cpp_cia_ops = functools.cache(_once_each(look_up))
        yield


@functools.cache
def _shared(registries: Any) -> Any:
    return functools.cache(registries.from_torchlib)


@functools.cache
def _once_each(look_up: Callable[[], None]) -> Callable[[], None]:
    """Look up torch's composite operators again only where a library has registered more."""
    seen: list[str] = []

    def changed_only() -> None:
        now = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if now != seen:
            look_up()
            seen[:] = now

    return changed_only


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what the exporter says about itself; anything about the network still shows.

    Where it fails, its dump of the graph is left out too: the error says what is at fault.
    """
    heard = io.StringIO()
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # torch.export's deepcopy of its own tree specs, through copyreg (torch 2.13)
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            # nn.LSTM's own list of its weights, and tables that a forward keeps as attributes
            warnings.filterwarnings("ignore", r"The tensor attributes? .+ assigned during export")
            with redirect_stderr(heard):
                yield
        sys.stderr.write(heard.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _slim(model: ModelProto) -> ModelProto:
    """What onnxslim makes of it; of a large network without its weights, which it would copy."""
    if model.ByteSize() <= LARGE_BYTES:
        slim: ModelProto = onnxslim.slim(model)
        return slim
    light = without_weights(model, as_inputs=True)
    slim = onnxslim.slim(light)
    kept = {tensor.name for tensor in light.graph.initializer}
    weights = {t.name: t for t in model.graph.initializer if t.name not in kept}
    given = [value for value in slim.graph.input if value.name not in weights]
    del slim.graph.input[:]
    slim.graph.input.extend(given)
    used = {name for node in slim.graph.node for name in node.input}
    slim.graph.initializer.extend(t for name, t in weights.items() if name in used)
    return slim


def _simplified(
    model: ModelProto, x: NDArray[np.float32], expected: NDArray[np.float32]
) -> ModelProto:
    try:
        slim = _slim(model)
        check(slim)
    except Exception as error:  # onnxslim raises whatever its passes meet
        raise KDError(
            "export-simplify",
            f"onnxslim failed: {error}",
            where="onnxslim",
            fix="pip install -U onnxslim; if it stays, report the network's operators",
        ) from error
    got = run_onnx(slim, x)
    off = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
    if not off <= max(SIMPLIFIED_TOLERANCE * float(np.abs(expected).max()), ROUNDING):
        raise KDError(
            "export-simplify",
            f"the simplified network differs by {off:.3g}",
            where="onnxslim",
            fix="pip install -U onnxslim; if it stays, report the network's operators",
        )
    return slim
