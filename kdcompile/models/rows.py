"""Run a network of any tensors on rows: its inputs and outputs one after the other as float32.

What trains and evaluates networks has one tensor in and one out. A network that takes or gives
others gets a forward pass that translates; its modules, parameters and their names stay.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten_with_path

from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line
from kdcompile.core.ports import Port, Ports

ROWS = "_ports"  # of a network that runs on rows: its inputs
ALONE = "_runs_alone"  # and whether each row has to run by itself


def on_rows(network: nn.Module, ports: Ports) -> nn.Module:
    """The same network, which now takes rows [N, width] and gives rows of its outputs.

    Samples run together where every tensor has a first axis of 1 and the network takes more than
    one, else one after the other.
    """
    kind = type(network)
    if ROWS not in vars(network):
        network.__class__ = type(kind.__name__, (_OnRows, kind), {"__module__": kind.__module__})
    vars(network)[ROWS] = ports
    vars(network)[ALONE] = not _runs_together(network, ports)
    return network


def _runs_together(network: nn.Module, ports: Ports) -> bool:
    """Whether a network takes two samples at once, and its outputs tell them apart."""
    if not ports.has_batch:
        return False
    device = next((p.device for p in network.parameters()), None)
    rows = torch.zeros(2, ports.width, device=device)
    try:
        with (
            torch.no_grad(),
            on_tensors(network),
            FakeTensorMode(allow_non_fake_inputs=True) as mode,
        ):
            given = tensors_of(mode.from_tensor(rows), ports)
            arguments, named = bound(network, given)
            found = named_outputs(network(*arguments, **named))
        return all(value.shape[:1] == (2,) for value in found.values())
    except Exception:  # of shapes that do not fit, or what cannot be run without values
        return False


def ports_of(network: nn.Module) -> Ports | None:
    """The inputs of a network that runs on rows; None of one that does not."""
    found: Ports | None = vars(network).get(ROWS)
    return found


def runs_alone(network: nn.Module) -> bool:
    """Whether a network on rows runs each of a batch by itself."""
    return bool(vars(network).get(ALONE, False))


@contextmanager
def on_tensors(network: nn.Module) -> Iterator[nn.Module]:
    """The network as it is by itself: it takes and gives its own tensors."""
    ports = vars(network).pop(ROWS, None)
    kind = type(network)
    try:
        if ports is not None:
            network.__class__ = kind.__mro__[2]
        yield network
    finally:
        if ports is not None:
            network.__class__ = kind
            vars(network)[ROWS] = ports


class _OnRows(nn.Module):
    """Mixed into the class of a network that runs on rows."""

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [N, width] to rows of the outputs, float32."""
        ports: Ports = vars(self)[ROWS]
        if len(rows) == 1 or not vars(self)[ALONE]:
            found = self._outputs(rows, ports).values()
            return torch.cat([value.reshape(len(rows), -1).float() for value in found], dim=1)
        return torch.cat([self(row) for row in torch.split(rows, 1)])

    def _outputs(self, rows: Tensor, ports: Ports) -> dict[str, Tensor]:
        arguments, named = bound(self, tensors_of(rows, ports))
        return named_outputs(super().forward(*arguments, **named))


def tensors_of(rows: Tensor, ports: Ports) -> dict[str, Tensor]:
    """The named tensors of some rows; with more rows than one their first axis grows."""
    parts = torch.split(rows, list(ports.sizes), dim=1)
    return {
        port.name: part.reshape(
            [len(rows) * port.shape[0], *port.shape[1:]] if port.shape else []
        ).to(getattr(torch, port.dtype))
        for port, part in zip(ports.ports, parts, strict=True)
    }


def zeros(ports: Ports, device: torch.device | None = None) -> tuple[Tensor, ...]:
    """An empty sample."""
    return tuple(
        torch.zeros(p.shape, dtype=getattr(torch, p.dtype), device=device) for p in ports.ports
    )


def bound(
    network: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Arguments and named arguments of a forward pass: by name where it has all of the names."""
    forward = next(
        vars(kind)["forward"]
        for kind in type(network).__mro__
        if kind is not _OnRows and "forward" in vars(kind)
    )
    if set(tensors) <= set(inspect.signature(forward).parameters):
        return (), dict(tensors)
    return tuple(tensors.values()), {}


def in_order(network: nn.Module, ports: Ports) -> tuple[Tensor, ...]:
    """An empty sample in the order of a network's arguments, for what knows no names."""
    device = next((p.device for p in network.parameters()), None)
    given = dict(zip(ports.names, zeros(ports, device), strict=True))
    arguments, named = bound(network, given)
    known = list(inspect.signature(network.forward).parameters) if named else []
    return arguments or tuple(named[name] for name in sorted(named, key=known.index))


def named_outputs(given: Any) -> dict[str, Tensor]:
    """The tensors of what a network gives, by their keys: `logits`, `output_1`.

    Raises:
        KDError: `network-output`, there is none, or one of integers.
    """
    found: dict[str, Tensor] = {}
    for path, value in tree_flatten_with_path(given)[0]:
        if isinstance(value, Tensor):
            keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
            name = "_".join(["output", *keys] if not keys or keys[0].isdigit() else keys)
            found[name] = value
    whole = next((n for n, v in found.items() if not v.is_floating_point()), None)
    if not found or whole is not None:
        what = "no tensor" if whole is None else f"{whole} as {found[whole].dtype}"
        raise KDError(
            "network-output",
            f"the network gives {what}, which no student can be held against",
            where="its forward()",
            fix="return floating-point tensors: logits and scores, not what is decided from them",
        )
    return found


def refused(ports: Ports, error: Exception) -> KDError:
    """The refusal of inputs that a network fails on."""
    told = ", ".join(f"{port.name} {port.dtype} {list(port.shape)}" for port in ports.ports)
    reason = first_line(error)
    return KDError(
        "network-forward",
        f"the network fails on {told}: {reason}",
        where="[teacher] model and [export] inputs",
        fix="give export.inputs the names, shapes and types of the network's arguments",
    )


def output_ports(network: nn.Module, ports: Ports) -> Ports:
    """The outputs of a network for one sample.

    Raises:
        KDError: `network-output`, or `network-forward` where it does not take such inputs.
    """
    device = next((p.device for p in network.parameters()), None)
    with torch.no_grad(), on_tensors(network):
        given = dict(zip(ports.names, zeros(ports, device), strict=True))
        arguments, named = bound(network, given)
        try:
            outputs = network(*arguments, **named)
        except Exception as error:  # whatever the user's forward raises
            raise refused(ports, error) from error
        found = named_outputs(outputs)
    return Ports(tuple(Port(n, tuple(v.shape), "float32") for n, v in found.items()))
