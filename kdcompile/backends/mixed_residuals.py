"""Pairs on the mixed network's residual branches: by the device's clock, elsewhere as predicted."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from kdcompile.backends.candidate_runner import REFUSALS, BoardRig, Paths, Rig
from kdcompile.backends.choose import TIE
from kdcompile.core.errors import KDError
from kdcompile.data.preprocess import Input

if TYPE_CHECKING:
    from onnx import ModelProto

Price = Callable[["ModelProto"], float]
RIVAL = "mixed_residuals"  # under which the worker loads it beside the network without


@dataclass(frozen=True)
class Residuals:
    """Whether the sums' other terms (by the sums' outputs) come through pairs, and why.

    `ratio` is the latency with the pairs over that without, None where it did not come to that.
    """

    branches: Mapping[str, str]
    kept: bool
    ratio: float | None
    basis: Literal["measured", "predicted", "accuracy", "refused"]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def weigh(
    rig: Rig,
    paths: Paths,
    branches: Mapping[str, str],
    paired: tuple["ModelProto", Path],
    passes: Callable[["ModelProto"], bool],
    price: Price,
    image: Input,
) -> Residuals:
    """Whether the network with the pairs is to take the place of the mixed one that is ready.

    It has to pass, and to be faster: on a device by more than `TIE`, as two engines of one network
    differ by that, elsewhere by the latency model.

    Args:
        rig: with `mixed` ready.
        paths: the network's files by precision, the mixed one among them.
        branches: of `residual_branches`, at least one.
        paired: the network with the pairs, and its file.
        passes: whether a network keeps the limits.
        price: predicted milliseconds of a network.
        image: of the typical shape.

    Raises:
        KDError: what evaluating, pricing and timing raise; that a device refuses the network is
            an answer.
    """
    model, path = paired
    what = f"{len(branches)} residual branches in int8"
    if not passes(model):
        why = f"{what} would not keep the limits"
        return Residuals(branches, kept=False, ratio=None, basis="accuracy", why=why)
    if not isinstance(rig, BoardRig):
        ratio = price(model) / price(onnx.load(paths["mixed"]))
        why = f"{what} are predicted to take {ratio:.3f} of the time without"
        return Residuals(branches, kept=ratio < 1, ratio=ratio, basis="predicted", why=why)
    try:
        ratio = _timed(rig, {**paths, "mixed": path}, image)
    except KDError as error:
        if error.code not in (*REFUSALS, "onnx-refused"):
            raise
        why = f"{what} are refused: {error.message}"
        return Residuals(branches, kept=False, ratio=None, basis="refused", why=why)
    why = f"{what} take {ratio:.3f} of the time without, measured in turns"
    return Residuals(branches, kept=ratio < 1 - TIE, ratio=ratio, basis="measured", why=why)


def _timed(rig: BoardRig, paths: Paths, image: Input) -> float:
    """The median of the network in `paths` over that of the mixed one which is ready."""
    rig.load(rig.onnx("mixed", paths), "mixed", RIVAL)
    _, ms = rig.medians(["mixed", RIVAL], image)
    return ms[RIVAL] / ms["mixed"]
