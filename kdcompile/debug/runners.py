"""Runners of the forms of a network that are compared: each gives its output and inner tensors.

OnnxSide    an ONNX file in ONNX Runtime here
EngineSide  an engine at a place; to see a tensor an engine is built anew with it as output

Those of PyTorch's own forms are in `torch_runners`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.backends import engine
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.core.ports import as_row
from kdcompile.debug.tensors import WHOLE, exposed, stored
from kdcompile.onnx_graph.session import cpu_session, feeds_of
from kdcompile.onnx_graph.shapes import element_types
from kdcompile.remote.open import Place

Floats = NDArray[np.float32]
PROBE = "parity-probe"  # the name that a rebuilt engine is loaded under


class Side(ABC):
    """One form of the network.

    output: the name of its output among its tensors.
    ends: of a network that runs on rows the outputs that `output` is made of, by name; else empty.
    levels: of a search that one run answers: more than one where a run is dear.
    """

    output: str
    ends: tuple[str, ...] = ()
    levels = 1

    @abstractmethod
    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """The output and some more tensors, by name.

        Args:
            image: float32 [1, C, H, W], or a row [1, width].
            tensors: of the network, floating point.

        Raises:
            KDError: the place's, or `parity-refused`, ONNX Runtime does not take the network.
        """


class GraphSide(Side):
    """One whose tensors are those of an ONNX network.

    Args:
        model: one input and one output, or any that runs on rows.
        rows: it runs on rows.
    """

    def __init__(self, model: ModelProto, rows: bool) -> None:
        self.model = model
        self.ends = tuple(value.name for value in model.graph.output) if rows else ()
        self.output = WHOLE if rows else model.graph.output[0].name

    def exposed(
        self, base: ModelProto, tensors: Sequence[str], kinds: Mapping[str, int]
    ) -> tuple[ModelProto, dict[str, str]]:
        """The network with its own outputs and some more tensors (`tensors.exposed`)."""
        inner = [name for name in tensors if name != WHOLE]
        return exposed(base, (*(self.ends or (self.output,)), *inner), kinds)

    def joined(self, found: Mapping[str, Any]) -> dict[str, Floats]:
        """What was found as float32, on rows with `WHOLE`."""
        values = {name: np.asarray(value, np.float32) for name, value in found.items()}
        if self.ends:
            values[WHOLE] = as_row([values[name] for name in self.ends])
        return values


class OnnxSide(GraphSide):
    """An ONNX network in ONNX Runtime, as written, half tensors stored as half.

    Args:
        model: see `GraphSide`.
        optimised: as ONNX Runtime itself would run it, where it is what ships.
        rows: see `GraphSide`.
    """

    def __init__(self, model: ModelProto, optimised: bool = False, rows: bool = False) -> None:
        super().__init__(model, rows)
        self.optimised = optimised
        self.kinds = element_types(model)
        self._base = model if optimised else stored(model, self.kinds)
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
        return self.joined(dict(zip(wanted, found, strict=True)))

    def _open(self, tensors: tuple[str, ...]) -> None:
        model, names = self.exposed(self._base, tensors, self.kinds)
        self._session, self._names, self._tensors = None, {}, None
        self._session = cpu_session(model, optimised=self.optimised)
        self._names, self._tensors = names, tensors


class EngineSide(GraphSide):
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
        rows: see `GraphSide`.
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
        rows: bool = False,
    ) -> None:
        super().__init__(model, rows)
        self.place, self.board = place, board
        self.network, self.precision = network, precision
        self.settings, self.profile = settings, profile
        self._kinds = element_types(model)
        self._tensors: tuple[str, ...] = ()
        self._names: dict[str, str] = {}

    def run(self, image: Floats, tensors: Sequence[str] = ()) -> dict[str, Floats]:
        """See `Side`; without tensors the deployed engine itself, else one that is built anew."""
        inputs = engine.feeds_of(self.place, image)
        if not tensors:
            found = self.place.run(inputs, self.network)
            return self.joined(found if self.ends else {self.output: next(iter(found.values()))})
        if self._tensors != tuple(tensors):
            self._build(tuple(tensors))
        found = self.place.run(inputs, PROBE)
        return self.joined({name: found[given] for name, given in self._names.items()})

    def _build(self, tensors: tuple[str, ...]) -> None:
        self._tensors = ()
        model, names = self.exposed(self.model, tensors, self._kinds)
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
