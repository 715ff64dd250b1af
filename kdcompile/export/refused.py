"""Errors of a failed export, which name the operator, the module and the line at fault."""

import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import torch
from torch import fx, nn

from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line

TORCH = str(Path(torch.__file__).parent)
TRACEABLE = "write it in operators that torch.export traces"
DATA_DEPENDENT = "GuardOnDataDependentSymNode"  # torch's, of no public module


def refused(error: Exception, module: nn.Module, shapes: Sequence[Sequence[int]]) -> KDError:
    """The refusal of a network that torch's exporter fails on.

    Args:
        error: what the exporter raised.
        module: the network.
        shapes: smallest, typical and largest input.
    """
    cause = error.__cause__ or error
    if list(shapes[0]) != list(shapes[2]) and "onstraint" in str(cause):
        return size_refused(first_line(cause))
    own = _failure(module, shapes[2])
    if own is not None:
        return KDError(
            "network-forward",
            f"the network fails on an input of {list(shapes[2])}: {first_line(own)}",
            where=_where(own, module),
            fix="fix its forward(), or give export.shape as the network takes it",
        )
    node = next(_nodes(cause), None)
    if node is not None:
        return KDError(
            "export-failed",
            f"operator {str(node.target).removesuffix('.default')} has no ONNX form",
            where=_where_of(node, module),
            fix=f"replace that module, or {TRACEABLE} and ONNX has",
        )
    reason = first_line(cause)
    if type(cause).__name__ == DATA_DEPENDENT:
        reason = "what it does depends on values of its data"
    return KDError(
        "export-failed",
        f"torch.onnx cannot trace the network: {reason}",
        where=_where(cause, module),
        fix=f"{TRACEABLE}, such as torch.where for an if that reads values",
    )


def size_refused(reason: str) -> KDError:
    """The refusal of a network that does not take every size of a range."""
    return KDError(
        "export-dynamic",
        f"the network does not take every size of the range: {reason}",
        where="[export] shape",
        fix="use a fixed shape, or a network whose sizes need not divide evenly",
    )


def _failure(module: nn.Module, shape: Sequence[int]) -> Exception | None:
    """What the network itself raises on an empty input."""
    try:
        with torch.inference_mode():
            module(torch.zeros(tuple(shape)))
    except Exception as error:  # whatever the user's forward raises
        return error
    return None


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Innermost first, with the line that each was at."""
    return reversed(list(traceback.walk_tb(error.__traceback__)))


def _nodes(error: BaseException) -> Iterator[fx.Node]:
    """The operators that the exporter was at, innermost first."""
    for frame, _ in _frames(error):
        for value in frame.f_locals.values():
            if isinstance(value, fx.Node) and value.op == "call_function":
                yield value


def _where_of(node: fx.Node, module: nn.Module) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    lines = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in lines if not file.startswith(TORCH)]
    return ", ".join([_named(module, path), *(f"{file}, line {line}" for file, line in own[-1:])])


def _where(error: BaseException, module: nn.Module) -> str:
    """The innermost module that ran, and the line of the user's code."""
    names = {id(part): name for name, part in module.named_modules()}
    frames = list(_frames(error))
    ran = (names[id(v)] for f, _ in frames for v in f.f_locals.values() if id(v) in names)
    files = ((frame.f_code.co_filename, line) for frame, line in frames)
    ours = str(Path(__file__).parent.parent)
    users = ((f, n) for f, n in files if Path(f).is_file() and not f.startswith((TORCH, ours)))
    own = (f"{file}, line {number}" for file, number in users)
    return ", ".join([_named(module, next(ran, "")), *list(own)[:1]])


def _named(module: nn.Module, path: str) -> str:
    """A module by its name in the network and its class."""
    known = dict(module.named_modules())
    kind = type(known[path]).__name__ if path in known else ""
    return f"module {path} ({kind})" if path and kind else type(module).__name__
