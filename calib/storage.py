"""Which forms of quantised weights a TensorRT version reads."""

from typing import TYPE_CHECKING

from kdcompile.calib.qdq import Storage

if TYPE_CHECKING:
    from kdcompile.targets import Target


FP8_SINCE = 10  # the first TensorRT whose parser reads fp8 pairs


def may_be_fp8(precision: str, target: "Target") -> bool:
    """Whether a network in fp8 is a candidate."""
    tensorrt = target.software
    known = "fp8" in target.precisions and tensorrt is not None
    return precision in ("auto", "fp8") and known and _generation(str(tensorrt)) >= FP8_SINCE


def _generation(tensorrt: str) -> int:
    """The major version of "10.3" or, for a range, of its first."""
    return int(tensorrt.split(".")[0])


def weight_storage(tensorrt: str | None) -> Storage:
    """How weights are stored for a target's TensorRT ("10.3", "8.6..11", None for none).

    Int8 constants are read since TensorRT 10; an 8.x of the range asks for float32 and a pair.
    """
    return "float" if tensorrt is not None and _generation(tensorrt) < 10 else "int8"
