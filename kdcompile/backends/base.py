"""The Backend protocol: how a runtime describes itself, and builds, loads, runs and times networks.

A backend that implements all of it is served by a process of its own (`kdcompile.backends.serve`),
so that `build`, `verify`, `bench`, `compare` and a search that measures use it like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from numpy.typing import NDArray

from kdcompile.core import plugins

if TYPE_CHECKING:
    from kdcompile.targets import Target

Arrays = Mapping[str, NDArray[Any]]
Opener = Callable[[str], Any]  # the path of an engine to a function of one float32 array
register = partial(plugins.register, "backends")  # @register("NAME") on the class of a backend


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do for one target.

    Args:
        precisions: that it builds there.
        opsets: the oldest and the newest ONNX opset that it reads.
        int8: the form of an int8 network; None where there is no int8.
        dynamic_shapes: whether batch, height and width may be free.
        options: of `[compile]` that its builder takes; another one is refused.
        dla: the number of deep-learning accelerators, and what they compute in.
    """

    precisions: tuple[str, ...]
    opsets: tuple[int, int]
    int8: Literal["qdq"] | None = "qdq"
    dynamic_shapes: bool = True
    options: frozenset[str] = frozenset()
    dla: int = 0
    dla_precisions: tuple[str, ...] = ()

    def refusal(self, precision: str, settings: Mapping[str, Any]) -> str:
        """Why a precision is not built with these settings of `[compile]`; empty where it is."""
        if settings["dla"] is not None and precision not in self.dla_precisions:
            return f"compile.dla is set, and a DLA has no {precision}"
        return ""


@dataclass(frozen=True)
class Tensor:
    """An input or output; a free size is -1."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One executed layer: mean milliseconds of an inference, arithmetic, and its ONNX nodes."""

    name: str
    ms: float
    precision: str | None = None
    onnx: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Args:
        precision: one of the backend's; an int8 network has explicit Q/DQ pairs.
        profile: smallest, typical and largest input shape; None where the network fixes it.
        settings: the section `[compile]`; what a backend does not list in `options` is not set.
    """

    precision: str
    profile: Sequence[Sequence[int]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Args:
        path: its file.
        flags: of the builder, for the record.
        layers: the ONNX nodes of each of its layers by name, where the builder tells them.
    """

    path: Path
    flags: tuple[str, ...] = ()
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Network(Protocol):
    """A loaded engine; `inputs` and `outputs` by name."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The inputs by name."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """The outputs by name."""

    def run(self, inputs: Arrays) -> Arrays:
        """The outputs by name, as arrays of the caller's own.

        Args:
            inputs: C-contiguous arrays of the declared types, by name.
        """

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """The timing hook: one inference a call, its inputs in the runtime's memory already."""

    def profile(self, inputs: Arrays, iterations: int) -> Sequence[Layer]:
        """The executed layers with their times; empty where the runtime does not tell them."""


class Description(Protocol):
    """What is known of a backend without its library."""

    @property
    def title(self) -> str:
        """Its name in sentences."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it can compute in on some target."""

    @property
    def compiles(self) -> bool:
        """Whether an engine is something else than the ONNX file, and built before it is loaded."""

    def capabilities(self, target: "Target") -> Capabilities:
        """What it can do for a target."""

    def differences(self, target: "Target", about: Mapping[str, Any]) -> list[str] | None:
        """What keeps a measurement on a machine from being one of the target's.

        Args:
            target: what a build is for.
            about: what the machine reports (`hello` of the agent).

        Returns:
            A clause each; empty on the target itself; None where the machine only stands in for
            the target, so that what it measures is `host` evidence.
        """


class Backend(Description, Protocol):
    """A runtime of this machine; constructing it loads no library."""

    @property
    def opener(self) -> Opener:
        """A function that opens an engine for `infer.py` of a bundle.

        It stands alone: its source is shipped, and it imports what it needs.
        """

    @property
    def version(self) -> str:
        """The library's version, such as `2026.4.1`.

        Raises:
            ToolMissingError: it is not installed.
        """

    def build(self, onnx: Path, engine: Path, options: BuildOptions) -> Engine:
        """Build the engine of an ONNX file and write it to `engine`.

        Raises:
            KDError: `onnx-refused`, `build-failed`.
        """

    def load(self, engine: Path, threads: int = 0) -> Network:
        """Load an engine, on so many threads of a CPU; 0 leaves the number to the library.

        Raises:
            KDError: `engine-refused`.
        """
