"""Build and load the measured artifacts on their device, and make inputs to time them on."""

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.backends import find, library
from kdcompile.core.errors import KDError
from kdcompile.latency.subject import Shape, Subject
from kdcompile.remote.open import Place

SEED = 0
Arrays = dict[str, NDArray[Any]]
Open = Callable[[], Place]
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Engine:
    """What a process loads: a file there, or one of this machine that is copied there.

    Args:
        sha256: of what runs.
        there: the path of an engine that was built for this measurement; None for a subject that
            is loaded as it is.
    """

    sha256: str
    there: str | None = None


@contextmanager
def built(
    subjects: Sequence[Subject], backend: str, count: int, batch: int | None, open_: Open
) -> Iterator[list[list[Engine]]]:
    """The engines of each subject, in as many builds as were asked for; they are removed after.

    Each is built with kernel timings of its own and not from a timing cache: the choice of kernels
    is what differs from build to build. An ONNX file is what ONNX Runtime itself loads, and an
    engine is built already.

    Args:
        subjects: what is measured.
        backend: of the place.
        count: builds of each subject.
        batch: images of an inference; None leaves the subject's.
        open_: the place. Builds have a process of their own, so that none is measured after them.

    Raises:
        KDError: `builds-none`; what building raises, such as `onnx-refused`.
    """
    if count > 1:
        _check_builds(subjects, backend)
    fixed = [[Engine(subject.sha256)] for subject in subjects]
    if not any(_is_built(subject, backend) for subject in subjects):
        yield fixed
        return
    made: list[str] = []
    try:
        with open_() as place:
            engines = [
                [_build(place, s, i, batch, made) for i in range(count)]
                if _is_built(s, backend)
                else known
                for s, known in zip(subjects, fixed, strict=True)
            ]
        yield engines
    finally:
        if made:
            with suppress(KDError), open_() as place:  # a board that is gone keeps them
                for path in made:
                    place.call("remove", path=path)


def load(
    place: Place,
    subject: Subject,
    engine: Engine,
    network: str,
    graph: bool,
    threads: int | None = None,
) -> Any:
    """Load under a name, on so many threads of a CPU; the worker's answer, with `inputs` by name.

    Raises:
        KDError: the worker's, such as `engine-mismatch` or `onnx-refused`.
    """
    more = {} if threads is None else {"threads": threads}
    if engine.there is not None:
        return place.call("load", path=engine.there, name=network, graph=graph, **more)
    record = subject.record or onnx_record(place.about, subject.sha256, subject.precision)
    return place.call(
        "load", path=place.put(subject.path), name=network, graph=graph, expected=dict(record),
        **more,
    )  # fmt: skip


def onnx_record(about: Mapping[str, Any], sha256: str, precision: str) -> dict[str, Any]:
    """The record that stands for an ONNX file, which ONNX Runtime compiles when it loads it."""
    gpu = about["gpu"] or {}
    return {
        library(about["backend"]): about["backend_version"],
        "platform": about["platform"],
        "compute_capability": gpu.get("compute_capability"),
        "sha256": sha256,
        "precision": precision,
    }


def _is_built(subject: Subject, backend: str) -> bool:
    return subject.kind == "onnx" and bool(find(backend).compiles)


def _check_builds(subjects: Sequence[Subject], backend: str) -> None:
    for subject in subjects:
        if not _is_built(subject, backend):
            reason = (
                "an engine is built already"
                if subject.kind == "engine"
                else f"{backend} makes a session of the file each time it loads it, "
                "in every process anew"
            )
            raise KDError(
                "builds-none",
                f"{subject.name} cannot be built several times: {reason}",
                where=str(subject.path),
                fix="leave --builds out, or name ONNX files and a backend that compiles them",
            )


def _build(
    place: Place, subject: Subject, number: int, batch: int | None, made: list[str]
) -> Engine:
    log.info("building %s at %s, build %d", subject.name, place.label, number + 1)
    there = place.path(f"bench-{secrets.token_hex(4)}.engine")
    made += [there, there + ".json"]
    shape = subject.input_shape and with_batch(subject.input_shape, batch)
    onnx, profile = place.put(subject.path), shape and [list(shape)] * 3
    try:
        about = place.call(
            "build", onnx=onnx, engine=there, precision=subject.precision, profile=profile
        )
    except KDError as error:
        if error.code != "profile-missing":
            raise
        raise _unknown(subject, error.message) from error
    return Engine(str(about["sha256"]), there)


def with_batch(shape: Shape, batch: int | None) -> Shape:
    """The shape with another first size, where one is wished."""
    return shape if batch is None or not shape else (batch, *shape[1:])


def inputs_for(subject: Subject, loaded: Mapping[str, Any], batch: int | None) -> Arrays:
    """Normally distributed inputs by name, of a fixed seed; small integers where those are taken.

    Args:
        subject: with its shape, where it has one.
        loaded: the worker's answer to `load`.
        batch: images of an inference; None leaves the subject's.

    Raises:
        KDError: `shape-unknown`, a size is open; `shape-refused`, the network has another.
    """
    rng, arrays = np.random.default_rng(SEED), {}
    ports = loaded["inputs"]
    for name, port in ports.items():
        sizes = tuple(port["shape"])
        alone = len(ports) == 1
        shape = subject.input_shape if alone and subject.input_shape is not None else sizes
        shape = with_batch(shape, batch)
        if min(shape, default=1) < 1:
            raise _unknown(subject, f"input {name} is {_text(sizes)}")
        fits = len(shape) == len(sizes)
        if not fits or any(b not in (-1, a) for a, b in zip(shape, sizes, strict=True)):
            raise _misfit(subject, name, shape, sizes)
        arrays[name] = _values(rng, shape, port["dtype"], subject)
    return arrays


def _values(rng: np.random.Generator, shape: Shape, dtype: str, subject: Subject) -> NDArray[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise KDError(
            "input-refused",
            f"{subject.name} takes {dtype}, for which there are no random values",
            where=str(subject.path),
            fix="export the part of the network that takes numbers",
        ) from None
    values = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
    return np.asarray(values).astype(kind)


def joined(subjects: Sequence[Subject], arrays: Sequence[Arrays]) -> tuple[Arrays, str]:
    """The inputs of all in one, and their shapes and types, such as `1x3x576x768 float32`.

    Raises:
        KDError: `inputs-differ`: a ratio of latencies says nothing across sizes.
    """
    texts = [", ".join(f"{_text(a.shape)} {a.dtype}" for a in own.values()) for own in arrays]
    for subject, text in zip(subjects, texts, strict=True):
        if text != texts[0]:
            raise KDError(
                "inputs-differ",
                f"{subjects[0].name} is measured on {texts[0]}, {subject.name} on {text}",
                where=str(subject.path),
                fix="give both one input size: --shape, where they take it, and --batch",
            )
    return {name: array for own in arrays for name, array in own.items()}, texts[0]


def _text(sizes: Shape) -> str:
    return "x".join("?" if size < 1 else str(size) for size in sizes)


def _unknown(subject: Subject, what: str) -> KDError:
    return KDError(
        "shape-unknown",
        f"the typical input size of {subject.name} is not known: {what}",
        where=str(subject.path),
        fix="name it, such as --shape 1x3x576x768",
    )


def _misfit(subject: Subject, name: str, shape: Shape, sizes: Shape) -> KDError:
    return KDError(
        "shape-refused",
        f"{subject.name} takes {name} of {_text(sizes)}, not {_text(shape)}",
        where=str(subject.path),
        fix="give a --shape and --batch that fit, or leave both out",
    )
