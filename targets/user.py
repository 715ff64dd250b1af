"""Measurements of a user on a device: one TOML for each target, outside the package.

It holds the efficiencies that `kdcompile targets calibrate NAME` fitted, with their uncertainty,
where they were measured, and the measured latencies themselves; of a CPU also the channels that a
vector of it takes. `targets.load` gives all but the latencies as `Target.calibration`, so that they
are part of every cache key.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcompile.core import escape
from kdcompile.core.errors import KDError
from kdcompile.core.files import config_folder
from kdcompile.core.readers import MIB, read_toml

FORMAT = 1
LARGEST = 8 * MIB  # with the latencies of thousands of networks
TEXTS = ("target", "mode", "measured", "place", "machine", "backend", "backend_version", "source")
KEYS = {"format", "residual", "values", "covariance", *TEXTS}
OPTIONAL = {"gpu_mhz", "jetpack", "error", "channel_tile"}
LATENCIES = "observations"
HEAD = """\
# Written by `kdcompile targets calibrate {target}`. Delete this file to go back to the values
# that kdcompile ships. `covariance` is of the logarithms, in the order of the sorted names.
"""


def path(module: str) -> Path:
    """The file of a target, whether it is there or not: `$XDG_CONFIG_HOME` or `~/.config`."""
    return config_folder() / "targets" / f"{module}.toml"


def read(module: str) -> dict[str, Any] | None:
    """The calibration of a target without its latencies; None where there is none.

    Raises:
        KDError: `calibration-invalid`, the file is not one that kdcompile wrote.
    """
    whole = read_whole(module)
    return None if whole is None else {k: v for k, v in whole.items() if k != LATENCIES}


def read_whole(module: str) -> dict[str, Any] | None:
    """`read` with the `observations`: name, network, precision, `ms` and `predicted_ms` of each.

    Raises:
        KDError: `calibration-invalid`.
    """
    place = path(module)
    try:
        table = read_toml(place, LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise invalid(module, f"cannot be read: {error}") from error
    except ValueError as error:
        raise invalid(module, str(error)) from error
    check(module, table)
    return table


def check(module: str, table: Mapping[str, Any]) -> None:
    """Hold a calibration against its schema.

    Raises:
        KDError: `calibration-invalid`.
    """
    for key in sorted(KEYS - set(table)):
        raise invalid(module, f"{key} is missing")
    for key in sorted(set(table) - KEYS - OPTIONAL - {LATENCIES}):
        raise invalid(module, f"{key} is not known")
    if table["format"] != FORMAT:
        raise invalid(module, f"format {table['format']!r}, this kdcompile reads {FORMAT}")
    if table["target"] != module:
        raise invalid(module, f"it is of {table['target']!r}")
    for key in TEXTS:
        if not isinstance(table[key], str):
            raise invalid(module, f"{key} is no text")
    values, covariance = table["values"], table["covariance"]
    if not isinstance(values, dict) or not values or not all(map(_positive, values.values())):
        raise invalid(module, "values are not all positive numbers")
    if not _positive(table["residual"]):
        raise invalid(module, "residual is not a positive number")
    if type(table.get("channel_tile", 1)) is not int or table.get("channel_tile", 1) < 1:
        raise invalid(module, "channel_tile is no number of channels")
    if not _square(covariance, len(values)):
        raise invalid(module, f"covariance is no symmetric {len(values)} x {len(values)} matrix")


def to_toml(table: Mapping[str, Any]) -> str:
    """The file of a calibration, with its observations.

    Raises:
        KDError: `calibration-invalid`, a value that could not be read back.
    """
    check(str(table["target"]), table)
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and k != LATENCIES}
    lines = [HEAD.format(target=table["target"])]
    lines += [f"{key} = {_written(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *_pairs(value)]
    for row in table.get(LATENCIES, ()):
        lines += ["", f"[[{LATENCIES}]]", *_pairs(row)]
    return "\n".join(lines) + "\n"


def invalid(module: str, message: str) -> KDError:
    """The error of a calibration that cannot be used."""
    return KDError(
        "calibration-invalid",
        f"the calibration of {module}: {message}",
        where=str(path(module)),
        fix=f"delete that file, or measure again: kdcompile targets calibrate {module}",
    )


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _square(rows: Any, size: int) -> bool:
    """Whether these are the rows of a symmetric matrix of this size, its diagonal not negative."""
    if not isinstance(rows, Sequence) or len(rows) != size:
        return False
    if not all(isinstance(row, Sequence) and len(row) == size for row in rows):
        return False
    if not all(type(x) in (int, float) and math.isfinite(x) for row in rows for x in row):
        return False
    same = all(
        math.isclose(rows[i][j], rows[j][i], rel_tol=1e-6, abs_tol=1e-12)
        for i in range(size)
        for j in range(i)
    )
    return same and all(rows[i][i] >= 0 for i in range(size))


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{escape.toml(key)} = {_written(value)}" for key, value in table.items()]


def _written(value: Any) -> str:
    """A TOML value."""
    if isinstance(value, str):
        return escape.toml(value)
    if isinstance(value, Sequence):
        parts = [_written(part) for part in value]
        if value and not isinstance(value[0], int | float | str):
            return "[\n" + "".join(f"    {part},\n" for part in parts) + "]"
        return "[" + ", ".join(parts) + "]"
    return repr(float(value)) if isinstance(value, float) else str(value)
