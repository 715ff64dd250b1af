"""TensorRT's calibration cache, by which TensorRT 8 and 10 take int8 ranges without Q/DQ.

A text: `TRT-8601-EntropyCalibration2`, that is the version and the calibrator, then for each tensor
its name and its scale, amax / 127, as the hexadecimal digits of a big-endian float32:

    TRT-8601-EntropyCalibration2
    image: 3c010a14

TensorRT takes the cache only if the first line is its own. Of the tensors that are not listed it
knows no range, and the layers that give them stay in a wider type: only explicit Q/DQ says what
runs in int8, and TensorRT 11 reads nothing else.
"""

import hashlib
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from onnx import ModelProto

from kdcompile.calib.collect import tensors_to_quantise
from kdcompile.calib.table import INT8_MAX, CalibrationTable, TensorRange, tensor_range
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.core.readers import MIB, read_bounded

ALGORITHM = "EntropyCalibration2"  # of the calibrator that trtexec --calib reads with
FIRST = re.compile(r"TRT-\d+-(\w+)")
ENTRY = re.compile(r"(.+): ([0-9a-fA-F]{1,8})")
OF_TENSORRT = ("(Unnamed Layer", "ONNXTRT_")  # tensors that its ONNX parser adds
LARGEST = 64 * MIB  # bytes of a cache, which has a line for each tensor
NAMED = 3  # tensors that an error names


def cache_version(tensorrt: str | None) -> str | None:
    """The TensorRT that a cache for a target is for, or None where none is read.

    Of a range "8.6..11.99" it is the lowest; TensorRT 11 has no calibrators.
    """
    version = (tensorrt or "").split("..")[0]
    return version if version and int(version.split(".")[0]) < 11 else None


def first_line(version: str) -> str:
    """The line that a TensorRT of this version wants: 8.6.1 is 8601, 10.3.0 is 100300."""
    major, minor, patch = [*(int(part) for part in version.split(".")[:3]), 0, 0][:3]
    thousand = 1000 if major < 10 else 10000
    return f"TRT-{major * thousand + minor * 100 + patch}-{ALGORITHM}"


def write_cache(table: CalibrationTable, path: Path, version: str) -> None:
    """Write the scales of a table for a TensorRT version such as "8.6.1".

    Raises:
        KDError: `calib-cache-format`: a tensor's name cannot stand on a line.
    """
    lines = [first_line(version)]
    for name, entry in table.tensors.items():
        if not name or set(name) & {"\n", "\r"}:
            raise KDError(
                "calib-cache-format",
                f"a calibration cache has a line for each tensor, and {name!r} does not fit one",
                where=str(path),
                fix="name the tensor without line breaks",
            )
        lines.append(f"{name}: {struct.pack('>f', entry.scale).hex()}")
    write_text(path, "\n".join(lines) + "\n")


def read_cache(path: Path, model: ModelProto, onnx_sha256: str = "") -> CalibrationTable:
    """The ranges of a cache for this network, whoever wrote it.

    Only scales are kept in a cache: the table's extremes are those of int8, its saturation is 0
    for want of knowledge, and its calibrator is that of the first line.

    Args:
        path: the cache.
        model: the float32 network.
        onnx_sha256: hash of its file, for the table.

    Raises:
        KDError: `calib-cache-format`: it is no cache; `calib-cache-model`: it is one of another
            network, for it names tensors that this one lacks, or lacks some to be quantised.
    """
    try:
        blob = read_bounded(path, LARGEST)
        lines = blob.decode("utf-8").replace("\r\n", "\n").split("\n")
    except (OSError, ValueError) as error:
        raise _malformed(path, f"it cannot be read: {error}") from error
    header = FIRST.fullmatch(lines[0].strip())
    if header is None:
        raise _malformed(path, f"line 1 is {lines[0][:60]!r}")
    ranges = dict(_entry(path, n, line) for n, line in enumerate(lines[1:], 2) if line.strip())
    known = _tensor_names(model)
    strange = [name for name in ranges if name not in known and not name.startswith(OF_TENSORRT)]
    if strange:
        raise _of_another(path, f"the network has no tensor {_first_few(strange)}")
    missing = [name for name in tensors_to_quantise(model) if name not in ranges]
    if missing:
        raise _of_another(path, f"it has no scale for {_first_few(missing)}")
    kept = {name: entry for name, entry in ranges.items() if name in known}
    sha = hashlib.sha256(blob).hexdigest()
    return CalibrationTable(header[1], onnx_sha256, (), kept, "tensorrt", sha)


def _entry(path: Path, number: int, line: str) -> tuple[str, TensorRange]:
    found = ENTRY.fullmatch(line.rstrip("\r"))
    if found is None:
        raise _malformed(path, f"line {number} is {line[:60]!r}")
    (scale,) = struct.unpack(">f", bytes.fromhex(found[2].zfill(8)))
    if not math.isfinite(scale) or scale < 0:
        raise _malformed(path, f"line {number}: the scale of {found[1]} is {scale}")
    amax = scale * INT8_MAX
    return found[1], tensor_range(amax, 0.0, -amax, amax)


def _tensor_names(model: ModelProto) -> set[str]:
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    return made | {v.name for v in graph.input} | {t.name for t in graph.initializer}


def _first_few(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _malformed(path: Path, message: str) -> KDError:
    return KDError(
        "calib-cache-format",
        f"this is no TensorRT calibration cache: {message}",
        where=str(path),
        fix=f"line 1 is such as {first_line('8.6.1')}, each other one `tensor: hex` of a float32",
    )


def _of_another(path: Path, message: str) -> KDError:
    return KDError(
        "calib-cache-model",
        f"the calibration cache is of another network: {message}",
        where=str(path),
        fix="calibrate this network: kdcompile calibrate writes calibration.cache",
    )
