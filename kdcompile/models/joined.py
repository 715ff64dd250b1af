"""Run a detector of several outputs as one of a single output: its boxes and scores in one tensor.

Whatever trains, quantises, exports and evaluates networks has one tensor out. A detector that gives
boxes and scores apart (SSD, RetinaNet, DETR), as rows, as columns or as maps of several levels,
gets a forward pass that joins them to rows [N, A, 4 + C], boxes first; its modules, parameters and
their names stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.models.rows import named_outputs

JOINED = "_joins"  # of a network whose outputs are joined
SIDES = 4  # numbers of a box
BOX_NAMES, SCORE_NAMES = ("box",), ("logit", "score", "class", "cls", "conf")


def with_joined_outputs(network: nn.Module) -> nn.Module:
    """The same network, which gives its boxes and scores joined; one tensor alone stays as it is.

    Its forward raises `network-output` where its outputs are no such two.
    """
    kind = type(network)
    if JOINED not in vars(network):
        network.__class__ = type(kind.__name__, (_Joining, kind), {"__module__": kind.__module__})
        vars(network)[JOINED] = True
    return network


def joins_outputs(network: nn.Module) -> bool:
    """Whether it is such a network."""
    return JOINED in vars(network)


class _Joining(nn.Module):
    """Mixed into the class of a network whose outputs are joined."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, A, 4 + C]."""
        given = super().forward(x)
        return given if isinstance(given, Tensor) else joined(given)


def joined(given: Any) -> Tensor:
    """Boxes and scores of whatever a network returned, [N, A, 4 + C].

    Args:
        given: tuples, lists and dicts of tensors. Two of rows [N, A, .] or of columns [N, ., A]; or
            maps of levels, [N, A * 4, h, w] and [N, A * C, h, w] of each, whose rows are ordered by
            level, row, column and anchor. Beside tensors that are named as boxes and as scores
            others, such as those of inner layers, are left out.

    Raises:
        KDError: `network-output`.
    """
    found = named_outputs(given)
    boxes, scores = _by_name(found) or _by_place(list(found.values())) or ([], [])
    if not boxes:
        raise _refused(found)
    rows = [_rows_of(box, score) for box, score in zip(boxes, scores, strict=True)]
    if any(pair is None for pair in rows):
        raise _refused(found)
    return torch.cat([torch.cat(pair, dim=2) for pair in rows if pair is not None], dim=1)


Sides = tuple[list[Tensor], list[Tensor]]


def _by_name(found: Mapping[str, Tensor]) -> Sides | None:
    """Boxes and scores of outputs whose names say so; those of auxiliary heads are left out."""
    own = {name.lower(): value for name, value in found.items() if not name.startswith("aux")}
    boxes = [v for n, v in own.items() if any(part in n for part in BOX_NAMES)]
    rest = {n: v for n, v in own.items() if not any(part in n for part in BOX_NAMES)}
    scores = [v for n, v in rest.items() if any(part in n for part in SCORE_NAMES)]
    return (boxes, scores) if boxes and len(boxes) == len(scores) else None


def _by_place(found: Sequence[Tensor]) -> Sides | None:
    """Boxes and scores of outputs without names: all of the one, then all of the other; or pairs.

    None where either could be the boxes.
    """
    half = len(found) // 2
    if not found or len(found) % 2:
        return None
    apart, paired = (found[:half], found[half:]), (found[::2], found[1::2])
    for first, second in (apart, paired):
        fits = [
            all(_rows_of(box, score) is not None for box, score in zip(*ends, strict=True))
            for ends in ((first, second), (second, first))
        ]
        if all(fits):
            return None
        if any(fits):
            return (list(first), list(second)) if fits[0] else (list(second), list(first))
    return None


def _rows_of(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows [N, A, 4] and [N, A, C] of two outputs; None where they are no such two."""
    if boxes.dim() != scores.dim() or boxes.shape[0] != scores.shape[0]:
        return None
    if boxes.dim() == 4 and boxes.shape[2:] == scores.shape[2:] and not boxes.shape[1] % SIDES:
        anchors = boxes.shape[1] // SIDES
        if anchors == 0 or scores.shape[1] % anchors:
            return None
        return _flat(boxes, anchors), _flat(scores, anchors)
    if boxes.dim() != 3:
        return None
    if boxes.shape[2] == SIDES and boxes.shape[1] == scores.shape[1]:
        return boxes, scores
    if boxes.shape[1] == SIDES and boxes.shape[2] == scores.shape[2]:
        return boxes.transpose(1, 2), scores.transpose(1, 2)
    return None


def _flat(maps: Tensor, anchors: int) -> Tensor:
    """Maps [N, A * K, h, w] as rows [N, h * w * A, K]."""
    n, channels, height, width = maps.shape
    parts = maps.reshape(n, anchors, channels // anchors, height, width)
    return parts.permute(0, 3, 4, 1, 2).reshape(n, -1, channels // anchors)


def _refused(found: Mapping[str, Tensor]) -> KDError:
    what = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
    return KDError(
        "network-output",
        f"the network's outputs are not boxes and scores that go together: {what}",
        where="its forward()",
        fix='return {"boxes": [N, A, 4], "scores": [N, A, C]}, or as maps of levels, '
        "[N, A * 4, h, w] and [N, A * C, h, w] of each",
    )
