"""Named tensors of one side of a network, and the row of numbers that stands for a sample of them.

A network of any tensors is run on samples that are rows: the values of its inputs one after the
other as float32, in the order of their names. Its outputs make a row too. So all that handles
samples (training, calibration, gates) handles a matrix, and only the borders (files, exported
networks, runtimes) know names, shapes and types.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.core.errors import KDError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Row = NDArray[np.float32]

EXACT = 1 << 24  # integers up to this are float32 values


@dataclass(frozen=True)
class Port:
    """One tensor: its name, the shape of a sample's (batch included) and its NumPy type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Its number of values."""
        return math.prod(self.shape)

    def checked(self, given: Any, where: str) -> NDArray[Any]:
        """A sample's array in this shape and type; a leading axis of 1 may be missing.

        Raises:
            KDError: `sample-shape`, `sample-type` or `sample-nonfinite`.
        """
        array = np.asarray(given)
        if array.shape not in (
            self.shape,
            self.shape[1:] if self.shape[:1] == (1,) else self.shape,
        ):
            raise KDError(
                "sample-shape",
                f"{self.name} is {list(array.shape)}, the network takes {list(self.shape)}",
                where=where,
                fix=f"give it that shape, or correct export.inputs.{self.name}",
            )
        if array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise KDError(
                "sample-type",
                f"{self.name} is {array.dtype}, the network takes {self.dtype}",
                where=where,
                fix=f"convert it to {self.dtype}, or correct export.inputs.{self.name}",
            )
        whole = array.dtype.kind in "iu"
        if not np.isfinite(array).all() or (whole and (np.abs(array.astype(float)) > EXACT).any()):
            raise KDError(
                "sample-nonfinite",
                f"{self.name} holds "
                + (f"an integer over {EXACT}" if whole else "NaN or infinity"),
                where=where,
                fix="leave that sample out, or correct its values",
            )
        return np.ascontiguousarray(array.reshape(self.shape), self.dtype)


@dataclass(frozen=True)
class Ports:
    """The tensors of one side, in the order of the network's arguments or results."""

    ports: tuple[Port, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> Ports:
        """The ports that hold some arrays."""
        return cls(tuple(Port(n, a.shape, a.dtype.name) for n, a in tensors.items()))

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> Ports:
        """What `to_json` gave."""
        return cls(tuple(Port(r["name"], tuple(r["shape"]), r["dtype"]) for r in rows))

    def to_json(self) -> list[dict[str, Any]]:
        """As JSON values."""
        return [{"name": p.name, "shape": list(p.shape), "dtype": p.dtype} for p in self.ports]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors."""
        return tuple(port.name for port in self.ports)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values of a row each tensor has."""
        return tuple(port.size for port in self.ports)

    @property
    def width(self) -> int:
        """The values of a row."""
        return sum(self.sizes)

    @property
    def has_batch(self) -> bool:
        """Whether samples can be run together: each tensor has a first axis of 1."""
        return all(port.shape[:1] == (1,) for port in self.ports)

    def pack(self, tensors: Mapping[str, Any], where: str) -> Row:
        """The row [1, width] of a sample; arrays of other names are left out.

        Raises:
            KDError: `sample-missing`, or those of `Port.checked`.
        """
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise KDError(
                "sample-missing",
                f"the network takes {', '.join(self.names)}; the sample has no {missing[0]!r}"
                f"{nearest(missing[0], tensors)}",
                where=where,
                fix="give each sample one array by the name of each input of [export.inputs]",
            )
        arrays = [port.checked(tensors[port.name], where) for port in self.ports]
        return np.concatenate([array.reshape(1, -1).astype(np.float32) for array in arrays], axis=1)

    def unpack(self, row: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The tensors of a row [1, width] by name, each of its type."""
        ends = np.cumsum(self.sizes)
        return {
            port.name: np.ascontiguousarray(
                row[0, end - port.size : end].reshape(port.shape), port.dtype
            )
            for port, end in zip(self.ports, ends)  # noqa: B905  boards have Python 3.8
        }


def as_row(outputs: Sequence[NDArray[Any]]) -> Row:
    """A network's results as one row [1, width]."""
    return np.concatenate([np.asarray(o, np.float32).reshape(1, -1) for o in outputs], axis=1)
