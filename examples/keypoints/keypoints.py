"""Task `keypoints`: one object a photo, whose key points are found by a heat map each.

The network gives logits [N, K, h, w]. Softened over its cells, map k says where point k is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdcompile.core.errors import KDError
from kdcompile.data.targets import PointTargets, density_maps, flipped_of
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.kernels.kd_kl import kd_kl
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.records import over_sums
from kdcompile.tasks.task import Stratum

NEAR = 0.05  # of the photo's diagonal: a point that is no farther off is found
SIGMA = 1.0  # cells, of the Gaussian that a map is trained towards
MIRRORED = (0, 2, 1, 3)  # which point a mirror makes of each: the wings change sides


def pck(place: int | slice = slice(None)) -> Metric:
    """The share of key points that are found: of all, or of the one at a place.

    A record has which of K points are found, and then which there are.
    """

    def share(sums: Any) -> Any:
        found, there = np.split(sums, 2, axis=-1)
        return found[..., places].sum(-1) / there[..., places].sum(-1)

    places = np.atleast_1d(np.arange(len(MIRRORED))[place])
    return Metric(
        "pck", over_sums(share), higher=True, points=True, most=1.0, draws=999, records=True
    )


class KitePoints(PointTargets):
    """The points of crops in the network's order, also where a crop is mirrored."""

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """float32 [B, K, 3]: x, y, and 1 where the crop shows it."""
        found = super().__call__(table, side)
        return torch.where(flipped_of(table)[:, None, None], found[:, list(MIRRORED)], found)


class Maps(Objective):
    """Cross-entropy of each map with a Gaussian around its point, and KL with the teacher's map."""

    kind, is_dense = "generic", True
    weights: ClassVar[ByReduction] = {
        "mean": {"hard": 1.0, "soft": 1.0},
        "paper": {"hard": 1.0, "soft": 1.0},
    }
    formula = "hard: cross-entropy with a Gaussian around the point + soft: T^2 KL, over cells"

    @classmethod
    def targets(cls, photos: Any, stride: int, sigma: float, device: torch.device) -> KitePoints:
        """Points."""
        return KitePoints(photos, device)

    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """`hard` and `soft`; of points that the crop does not show the teacher alone speaks."""
        height, width = student.shape[2:]
        points, shown = target[..., :2].flatten(0, 1), target[..., 2].flatten()
        step = self.options.crop // height
        wanted = density_maps(points[:, None], shown[:, None] > 0, (height, width), step, SIGMA)
        rows = student.float().reshape(-1, height * width)
        losses = -(wanted.flatten(1) * log_softmax(rows, 1)).sum(1)
        terms = {"hard": losses.sum() / shown.sum().clamp_min(1)}
        if teacher is not None:
            terms["soft"] = self.soft(student, teacher)
        return terms

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL with the teacher's maps, which photos without labels have too."""
        own, other = (each.float().flatten(2).flatten(0, 1) for each in (student, teacher))
        return kd_kl(own, other, self.options.temperature)


class KeyPoints(Recording):
    """A photo's record: which of its key points are found, and which it has."""

    kind, like, output, unit, parts = "keypoints", "generic", "maps", "1", "by_class"
    metrics = (pck(),)
    examples = "By the student's mean distance from the points, in shares of the photo's diagonal."

    def objective(self) -> type[Objective]:
        """The losses."""
        return Maps

    def is_annotated(self, photo: Any) -> bool:
        """Whether it has points."""
        return len(photo.points) > 0

    def answer(self, output: Any, frame: Any) -> Any:
        """The key points of one image's output [1, K, h, w], float32 [K, 4].

        x and y in pixels of the photo, how sure it is, and which point it is.
        """
        maps, sizes = output[0], output.shape[2:]
        maps = np.where(frame.inside(*sizes) > 0, maps, -np.inf)  # not in the padding
        shares = np.exp(maps - maps.max((1, 2), keepdims=True))
        shares /= shares.sum((1, 2), keepdims=True)
        found = []
        for kind, share in enumerate(shares):
            row, column = np.unravel_index(share.argmax(), sizes)
            y, x = np.ogrid[: sizes[0], : sizes[1]]
            near = share * (abs(y - row) <= 2) * (abs(x - column) <= 2)
            sure = near.sum()
            place = np.array([(near * x).sum(), (near * y).sum()]) / sure + 0.5
            step = np.array(frame.plane[::-1]) / sizes[::-1]  # of the input's pixels a cell
            shown = np.array(frame.photo[::-1]) / frame.seen[::-1]  # of the photo's pixels in one
            found.append([*np.minimum(place * step * shown, frame.photo[::-1]), sure, kind])
        return np.array(found, np.float32)

    def record(self, output: Any, photo: Any, frame: Any) -> Any:
        """The mean distance, then whether each point is found, and that each is there."""
        if len(photo.points) != output.shape[1]:
            raise KDError(
                "labels-invalid",
                f"{photo.name} has {len(photo.points)} points, the network {output.shape[1]} maps",
                where="[data], for keypoints",
                fix="annotate every key point of the network, in its order",
            )
        if not np.isfinite(output).all():
            return np.full(1 + 2 * output.shape[1], np.nan)
        apart = np.hypot(*(self.answer(output, frame)[:, :2] - photo.points).T)
        shares = apart / np.hypot(*frame.photo)
        return np.concatenate([[shares.mean()], shares <= NEAR, np.ones(len(shares))])

    def parts_of(self, true: Any, errors: Any, classes: Sequence[str] | None) -> list[Stratum]:
        """All images, once for each key point: `class` and its `index`."""
        every, count = np.arange(len(errors)), len(MIRRORED)
        return [
            ({"class": self.name_of_class(k, classes), "index": k}, every) for k in range(count)
        ]

    def metric_of(self, metric: Metric, about: Mapping[str, Any]) -> Metric:
        """That of the one key point."""
        return pck(about["index"]) if "index" in about else metric

    def drawn(self, output: Any, frame: Any) -> Any:
        """The points in pixels of the input."""
        return self.answer(output, type(frame)(frame.seen, frame.seen, frame.plane))

    def drawn_truth(self, photo: Any, frame: Any) -> Any:
        """The annotated points, likewise."""
        count = len(photo.points)
        shown = np.array(frame.seen[::-1]) / frame.photo[::-1]
        columns = [photo.points * shown, np.ones((count, 1)), np.arange(count)[:, None]]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def describe(self, output: Any, classes: Sequence[str] | None) -> dict[str, Any]:
        """`points` of what `answer` gave: name, place and how sure it is."""
        return {
            "points": [
                {"class": self.name_of_class(int(k), classes), "score": round(sure, 4),
                 "point": [round(x, 1), round(y, 1)]}
                for x, y, sure, k in output.tolist()
            ]
        }  # fmt: skip

    def check_labels(self, labels: Any, outputs: int, classes: Any) -> str | None:
        """One map a name and a point."""
        if classes is None or len(classes) == outputs == len(MIRRORED):
            return None
        return f"there are {len(classes)} names, {len(MIRRORED)} points and {outputs} maps"

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Four axes."""
        return None if len(shape) == 4 else "keypoints needs heat maps [N, K, h, w]"
