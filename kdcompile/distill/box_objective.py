"""The losses of detection by centre maps, with labels and against a teacher; or a user's own."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.core.errors import KDError
from kdcompile.core.user_code import users_code
from kdcompile.data.box_targets import BoxTargets
from kdcompile.data.photo import Photo
from kdcompile.data.targets import Targets
from kdcompile.distill.centre_loss import (
    corners,
    focal,
    heat_maps,
    imitation,
    rows_imitation,
    unlikeness,
    weighed,
)
from kdcompile.distill.objective_base import ByReduction, Objective
from kdcompile.distill.pair_loss import pair_imitation
from kdcompile.tasks.detection.decoders import PAIRS, Setting
from kdcompile.tasks.task import Task

BOXES = 2.0  # of the boxes' terms beside the classes'
FIX = "return one number, a tensor with a gradient, from (output, boxes); docs/tasks.md"


class BoxObjective(Objective):
    """Centre maps [N, C + 4, h, w] against boxes [N, P, 6] of `BoxTargets`, and the teacher's maps.

    The teacher's boxes count by how sure it is, squared: what it takes for background it says
    nothing of. Of rows of boxes, [N, 4 + C, A], [N, A, 5 + C] or joined boxes and scores
    [N, A, 4 + C], there is the soft term alone unless the user brings a loss.
    """

    kind, is_dense = "detection", True
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "soft": 1.0},
        "paper": {"hard": 1.0, "soft": 1.0},
    }
    formula = (
        "hard: focal loss of the class maps + 2 (1 - GIoU(S, Y)) around the centres, or a loss of"
        " the user's; soft: quality focal loss against sigmoid(T), or KL of a softmax, + 2 (1 -"
        " GIoU(S, T)), or the distance of the boxes, weighed by the teacher's squared probability"
    )
    _own: Callable[[Tensor, Tensor], Tensor] | None = None
    _name = ""
    _pair: Setting | None = None

    @classmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """Boxes."""
        return BoxTargets(photos, device)

    def learn(self, task: Task, photos: Sequence[Photo]) -> None:
        """The user's own loss, where there is one, and what rows of boxes and scores mean."""
        self._own, self._name = getattr(task, "loss", None) or (None, "")
        decoder = getattr(task, "decoder", None)
        self._pair = task.setting(decoder) if decoder in PAIRS else None  # type: ignore[attr-defined]

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard`, where labels have a loss, and `soft`."""
        own = student.float()
        has_labels = self._own is not None or own.dim() == 4
        terms = {"hard": self._labels(own, target)} if has_labels or teacher is None else {}
        if teacher is not None:
            terms["soft"] = self.soft(own, teacher)
        return terms

    def _labels(self, maps: Tensor, target: Tensor) -> Tensor:
        if self._own is not None:
            return self._users(maps, target)
        if maps.dim() != 4:
            raise KDError(
                "task-loss",
                f"an output {list(maps.shape)} is no centre map [N, C + 4, h, w], for which alone "
                "a loss is built in",
                where="[task] loss",
                fix='name your loss, task.loss = "file.py:loss", from (output, boxes); or take '
                'distill.recipe = "kd", which imitates the teacher without labels',
            )
        classes, size = maps.shape[1] - 4, (maps.shape[2], maps.shape[3])
        with torch.no_grad():
            found = heat_maps(_there(target.float()), classes, size, self._step(maps))
        heat, sides, weight, judged = found
        away = unlikeness(corners(maps[:, classes:], self._step(maps)), sides)
        return focal(maps[:, :classes], heat, judged) + BOXES * weighed(away, weight)

    def hard(self, output: Tensor, target: Tensor) -> Tensor:
        """The label loss alone; where labels have none, the mean square of the output.

        It is what shows that a gradient comes back, and which channels matter.
        """
        if self._own is None and output.dim() != 4:
            return output.float().square().mean()
        return super().hard(output, target)

    def _users(self, maps: Tensor, target: Tensor) -> Tensor:
        """What the user's loss says.

        Raises:
            KDError: `task-loss`.
        """
        assert self._own is not None, "asked for where there is one"
        with users_code("task-loss", f"{self._name} fails", "[task] loss", FIX):
            found = self._own(maps, target)
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise KDError("task-loss", f"{self._name} gives {what}", "[task] loss", FIX)
        return found.reshape(())

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of centre maps, of rows of boxes, or of rows of boxes and scores."""
        maps, teacher = student.float(), teacher.float()
        if self._pair is not None:
            setting = self._pair
            return pair_imitation(maps, teacher, setting.head, setting.anchors is not None)
        if maps.dim() != 4:
            return rows_imitation(maps, teacher)
        classes, step = maps.shape[1] - 4, self._step(maps)
        sure = teacher[:, :classes].sigmoid().amax(1).square()
        away = unlikeness(corners(maps[:, classes:], step), corners(teacher[:, classes:], step))
        return imitation(maps[:, :classes], teacher[:, :classes]) + BOXES * weighed(away, sure)

    def _step(self, maps: Tensor) -> tuple[float, float]:
        """Pixels of a cell: maps are of crops."""
        return self.options.crop / maps.shape[2], self.options.crop / maps.shape[3]


def _there(boxes: Tensor) -> Tensor:
    """Without the rows that are no boxes, where that needs no wait for a device."""
    if boxes.is_cuda:
        return boxes
    there = boxes[:, :, 5] > 0
    most = max(int(there.sum(1).max()), 1)
    order = there.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    return boxes.take_along_dim(order.unsqueeze(2), 1)
