"""The file of a delta: safetensors with one tensor of bytes, and metadata that say what they are.

Its one key of metadata, `kdcompile-delta`, is JSON:

    version  1
    base     hash of the weights that it is for (`weights_hash`)
    result   hash of the weights that it makes
    layers   a list for each tensor in the order of names: kind, bytes of its stream,
             |made - new| / |new - base|, and the kind's own numbers (`layer`)

Neither names nor shapes are in it: they are the base's, so that no file can ask for memory. There
is one key,
for safetensors writes several in any order, and the same weights shall give the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.escape import first_line
from kdcompile.core.files import replacing, sweep_files
from kdcompile.core.readers import parse_json
from kdcompile.delta import layer as form
from kdcompile.delta.layer import Layer
from kdcompile.delta.packing import WHERE, corrupt
from kdcompile.delta.tensors import STUDENT, State, weights_hash

KEY, VERSION, DATA = "kdcompile-delta", 1, "data"
HEADER = 1024 * 1024  # bytes of a file in which the key is looked for
NO_HASH = "0" * 64


@dataclass(frozen=True)
class Delta:
    """base, result: hashes; layers: in the order of the tensors' names."""

    base: str
    result: str
    layers: Sequence[Layer]

    def to_bytes(self) -> bytes:
        """The file."""
        data = b"".join(layer.stream for layer in self.layers)
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
        about = {
            "version": VERSION,
            "base": self.base,
            "result": self.result,
            "layers": [layer.record() for layer in self.layers],
        }
        text = json.dumps(about, separators=(",", ":"))
        return bytes(save({DATA: tensor.to(torch.uint8)}, {KEY: text}))


def check_output(path: Path, inputs: Sequence[Path | None] = ()) -> None:
    """Refuse a place for no file before anything is worked out; its folder is made.

    Args:
        path: of the result.
        inputs: files that are read, or folders of a distill stage: the result must not take the
            place of one, by whatever name.

    Raises:
        KDError: `delta-output`.
    """
    for given in filter(None, inputs):
        for file in (given, given / STUDENT):
            if _is_one(path, file):
                raise KDError(
                    "delta-output",
                    f"this is {file.name}, which is read: writing here would destroy it",
                    where=str(path),
                    fix="name another file with -o",
                )
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            sweep_files(path.absolute().parent)
            return
        why = "this is a folder"
    except (FileExistsError, NotADirectoryError) as error:
        why = f"its folder cannot be made: {error.strerror}"
    raise KDError("delta-output", why, where=str(path), fix="name a file with -o")


def _is_one(path: Path, other: Path) -> bool:
    """Whether two names are of one file, through links too."""
    try:
        return path.samefile(other)
    except OSError:  # one of them is not there
        return False


def inputs_of(spec: Spec | None) -> list[Path | None]:
    """The files that a spec names: its own, and weights."""
    if spec is None:
        return []
    teachers = (each.file for each in (spec.teacher, *spec.teachers))
    return [spec.path, spec.student.weights, *teachers]


def write_delta(path: Path, delta: Delta) -> None:
    """Write a delta as a whole file or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(delta.to_bytes())


def read_delta(path: Path) -> Delta:
    """A delta that anybody may have written; its streams are looked at when it is applied.

    Raises:
        KDError: `delta-missing`, `delta-foreign`, `delta-newer` or `delta-corrupt`.
    """
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise KDError("delta-missing", what, str(path), "correct the path")
    with path.open("rb") as stream:
        is_ours = KEY.encode() in stream.read(HEADER)
    if not is_ours:
        raise KDError(
            "delta-foreign",
            "this is no delta of kdcompile",
            where=str(path),
            fix="name a file that kdcompile delta make wrote",
        )
    with named(path):
        about, data = _opened(path)
        _check_version(about.get("version"))
        hashes = about.get("base"), about.get("result")
        if not all(isinstance(one, str) and len(one) == len(NO_HASH) for one in hashes):
            raise corrupt("a hash of it is missing")
        return Delta(str(hashes[0]), str(hashes[1]), _layers(about.get("layers"), data))


def _opened(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with safe_open(path, framework="pt") as opened:
            about = parse_json((opened.metadata() or {})[KEY])
            data = opened.get_tensor(DATA)
    except Exception as error:  # safetensors' own, and json's, by what is damaged
        reason = first_line(error)
        raise corrupt(reason) from error
    if not isinstance(about, dict) or data.dtype != torch.uint8 or data.ndim != 1:
        raise corrupt("it does not hold what a delta holds")
    return about, data.numpy().tobytes()


def _check_version(version: object) -> None:
    if type(version) is not int or version < 1:
        raise corrupt("it does not say of which version it is")
    if version > VERSION:
        raise KDError(
            "delta-newer",
            f"the delta is of version {str(version)[:20]}, and this kdcompile reads {VERSION}",
            where=WHERE,
            fix="install the kdcompile that made it, or make the delta with this version",
        )


def _layers(records: object, data: bytes) -> list[Layer]:
    if not isinstance(records, list):
        raise corrupt("its layers are no list")
    found, start = [], 0
    for record in records:
        size = record[1] if isinstance(record, list) and len(record) > 2 else None
        if type(size) is not int or not 0 <= size <= len(data) - start:
            raise corrupt(f"a record of it is {str(record)[:40]}")
        found.append(form.parse(record, data[start : start + size]))
        start += size
    if start < len(data):
        raise corrupt("it has bytes of no tensor")
    return found


def rebuilt(layers: Sequence[Layer], base: State) -> dict[str, Tensor]:
    """The new tensors.

    Raises:
        KDError: `delta-corrupt`.
    """
    if len(layers) != len(base):
        raise corrupt(f"it has {len(layers)} tensors, and the base {len(base)}")
    names = sorted(base)
    return {n: form.rebuild(layer, base[n]) for n, layer in zip(names, layers, strict=True)}


def applied(delta: Delta, base: State, where: Path) -> dict[str, Tensor]:
    """The new tensors, checked.

    Raises:
        KDError: `delta-base`, other weights than it was made for; `delta-corrupt`.
    """
    found = weights_hash(base)
    if found != delta.base:
        raise KDError(
            "delta-base",
            f"the delta is for weights {delta.base[:16]}, and the base is {found[:16]}",
            where=str(where),
            fix="apply it to the weights that it was made from, or make one from these: "
            "kdcompile delta make BASE NEW -o FILE",
        )
    new = rebuilt(delta.layers, base)
    if weights_hash(new) != delta.result:
        raise corrupt("what it makes is not what it was to make")
    return new


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say which file, where an error says only that it is the delta."""
    try:
        yield
    except KDError as error:
        if error.where == WHERE:
            error.where = str(path)
        raise
