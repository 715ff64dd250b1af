"""The calibration table: the range of each quantised tensor, and where it came from."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.readers import read_json

INT8_MAX = 127
DEAD_SCALE = 1.0  # of a tensor that was all zero: any positive scale represents it exactly


@dataclass(frozen=True)
class TensorRange:
    """One tensor: `scale` = `amax` / 127, and `saturation`, the share of values clipped.

    A tensor that was zero throughout has `amax` 0 and scale 1.
    """

    amax: float
    scale: float
    saturation: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by tensor name of the ONNX file with this hash, and what they rest on.

    images: name and SHA-256 of each; counted_by: what counted the values of the tensors, `numpy`
    or `triton` with equal results, or `tensorrt` for a table that was read from a calibration
    cache; cache_sha256: the hash of that cache. Such a table knows no images.
    """

    calibrator: str
    onnx_sha256: str
    images: tuple[tuple[str, str], ...]
    tensors: Mapping[str, TensorRange]
    counted_by: str = "numpy"
    cache_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a table that cannot be used.

        Raises:
            KDError: `calib-empty` or `calib-nonfinite`.
        """
        if not (self.images or self.cache_sha256) or not self.tensors:
            raise KDError(
                "calib-empty",
                f"the calibration covers {len(self.images)} images, {len(self.tensors)} tensors",
                where="[quantize] images, [data] train",
                fix="calibrate on at least one readable training image",
            )
        for name, entry in self.tensors.items():
            if not all(math.isfinite(v) for v in asdict(entry).values()) or entry.scale <= 0:
                raise KDError(
                    "calib-nonfinite",
                    f"the range of {name} is {entry.minimum} to {entry.maximum}, "
                    f"its scale {entry.scale}",
                    where=name,
                    fix="check the student's weights and the calibration images",
                )

    def write(self, path: Path) -> None:
        """Write the table as JSON."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "calibrator": self.calibrator,
            "onnx_sha256": self.onnx_sha256,
            "counted_by": self.counted_by,
            "cache_sha256": self.cache_sha256,
            "images": [{"name": name, "sha256": sha} for name, sha in self.images],
            "tensors": {name: asdict(entry) for name, entry in self.tensors.items()},
        }

    @classmethod
    def read(cls, path: Path) -> "CalibrationTable":
        """The table that `write` wrote.

        Raises:
            KDError: `calib-table`, `calib-empty` or `calib-nonfinite`.
        """
        try:
            data = read_json(path, finite=False)
            tensors = {
                name: TensorRange(**{key: float(v) for key, v in entry.items()})
                for name, entry in data["tensors"].items()
            }
            images = tuple((image["name"], image["sha256"]) for image in data["images"])
            calibrator, sha = data["calibrator"], data["onnx_sha256"]
            counted_by, cache = data.get("counted_by", "numpy"), data.get("cache_sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KDError(
                "calib-table",
                f"this is no calibration table: {error}",
                where=str(path),
                fix="kdcompile calibrate writes one",
            ) from error
        return cls(calibrator, sha, images, tensors, counted_by, cache)


def tensor_range(amax: float, saturation: float, minimum: float, maximum: float) -> TensorRange:
    """The range with the scale that follows from `amax`.

    A magnitude too small for a normal float32 scale counts as zero.
    """
    scale = amax / INT8_MAX
    if scale < 2.0**-126:
        amax, scale, saturation = 0.0, DEAD_SCALE, 0.0
    return TensorRange(amax, scale, saturation, minimum, maximum)
