"""Pairs on the mixed network's residual branches: by the device's clock, elsewhere as predicted."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from kdcompile.backends.candidate_runner import REFUSALS, BoardRig, Paths, Rig
from kdcompile.backends.choose import TIE
from kdcompile.calib.sensitivity import Evaluate, Outcome
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.data.preprocess import Input

if TYPE_CHECKING:
    from onnx import ModelProto

Price = Callable[[Path, str], Mapping[str, Any]]
Rules = tuple[Evaluate, Callable[[Outcome], bool]]
RIVAL = "mixed_residuals"  # under which the worker loads it beside the network without


@dataclass(frozen=True)
class Residuals:
    """Whether the sums' other terms (by the sums' outputs) come through pairs, and why.

    `branches` are those that were weighed in the end. `ratio` is the latency with the pairs over
    that without, None where it did not come to that.
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
    make: Callable[[Mapping[str, str]], "ModelProto"],
    rules: Rules,
    price: Price,
    image: Input,
) -> Residuals:
    """Which residual branches take pairs, and whether that network stands for the mixed one.

    It has to pass, and to be faster: on a device by more than `TIE`, as two engines of one network
    differ by that, elsewhere by the latency model.

    Args:
        rig: with `mixed` ready.
        paths: the network's files by precision, the mixed one among them.
        branches: of `residual_branches`, at least one.
        make: the mixed network with pairs on some of them.
        rules: an evaluation, and whether what it finds is within the limits.
        price: what a network's file is predicted to take at a precision.
        image: of the typical shape.

    Raises:
        KDError: what evaluating, pricing and timing raise; that a device refuses the network is
            an answer.
    """
    taken = most_that_pass(branches, make, rules)
    what = f"{len(taken)} of {len(branches)} residual branches in int8"
    if not taken:
        why = f"none of {len(branches)} residual branches in int8 would keep the limits"
        return Residuals(taken, kept=False, ratio=None, basis="accuracy", why=why)
    with scratch() as aside:
        path = aside / paths["mixed"].name
        onnx.save(make(taken), path)
        if not isinstance(rig, BoardRig):
            ratio = float(price(path, "mixed")["ms"] / price(paths["mixed"], "mixed")["ms"])
            why = f"{what} are predicted to take {ratio:.3f} of the time without"
            return Residuals(taken, kept=ratio < 1, ratio=ratio, basis="predicted", why=why)
        try:
            ratio = _timed(rig, {**paths, "mixed": path}, image)
        except KDError as error:
            if error.code not in (*REFUSALS, "onnx-refused"):
                raise
            why = f"{what} are refused: {error.message}"
            return Residuals(taken, kept=False, ratio=None, basis="refused", why=why)
    why = f"{what} take {ratio:.3f} of the time without, measured in turns"
    return Residuals(taken, kept=ratio < 1 - TIE, ratio=ratio, basis="measured", why=why)


def most_that_pass(
    branches: Mapping[str, str],
    make: Callable[[Mapping[str, str]], "ModelProto"],
    rules: Rules,
) -> dict[str, str]:
    """All branches, or the most harmless of them, as many as the limits allow.

    Harm is the SQNR with a pair on that branch alone. How many is found by bisection: more pairs
    are taken to be worse.
    """
    evaluate, keeps = rules

    def passes(count: int) -> bool:
        return keeps(evaluate(make(dict(ordered[:count]))))

    ordered = [*branches.items()]
    if passes(len(ordered)):
        return dict(ordered)
    harm = {one: -evaluate(make({one: branches[one]})).sqnr_db for one in branches}
    ordered.sort(key=lambda item: harm[item[0]])
    count = bisect_left(range(1, len(ordered)), True, key=lambda n: not passes(n))
    return dict(ordered[:count])


def _timed(rig: BoardRig, paths: Paths, image: Input) -> float:
    """The median of the network in `paths` over that of the mixed one which is ready."""
    rig.load(rig.onnx("mixed", paths), "mixed", RIVAL)
    _, ms = rig.medians(["mixed", RIVAL], image)
    return ms[RIVAL] / ms["mixed"]
