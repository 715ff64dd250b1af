"""The task `detection`: boxes of classes, evaluated by COCO's mean average precision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.detection import Head
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.coreset import placed
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.detection.anchors import packed_anchors, read_anchors, unpacked_anchors
from kdcompile.tasks.detection.average_precision import Table
from kdcompile.tasks.detection.boxes import MOST, Found, best
from kdcompile.tasks.detection.decode import checked, find_decoder
from kdcompile.tasks.detection.decoders import DECODERS, PAIRS, Setting, parted
from kdcompile.tasks.detection.matching import ABSENT, FIELDS, classes_of, is_crowd, matched, packed
from kdcompile.tasks.detection.tables import tables_of
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.records import Recorded, over_records, weights_of
from kdcompile.tasks.strata import Stratum, by_contents
from kdcompile.tasks.task import Floats

DRAWS = 499  # resamples of an interval: benchmarks/README.md has what one costs
AT_HALF = (0,)  # places in `OVERLAPS`
DECODE_FIX = "correct it; docs/tasks.md has an example"


def _over(score: Callable[[Table, Floats], Floats]) -> Callable[..., Any]:
    """`Metric.of` by what `score` says of the boxes and of how often each image is drawn."""

    def of(rows: Floats, places: NDArray[np.int64]) -> Any:
        weights = weights_of(places.reshape(-1, places.shape[-1]), len(rows))
        return score(Table(rows), weights).reshape(places.shape[:-1])

    return over_records(of)


def _rows_of(errors: Mapping[str, Floats]) -> dict[str, Floats]:
    """The records of the images, by network."""
    return {w: own.rows[own.places] for w, own in errors.items() if isinstance(own, Recorded)}


MAP = Metric("map", _over(lambda t, w: t.mean(w)), higher=True, most=1.0, draws=DRAWS, records=True)
MAP50 = Metric(
    "map50", _over(lambda t, w: t.mean(w, AT_HALF)), higher=True, most=1.0, draws=DRAWS,
    records=True,
)  # fmt: skip
LEVELS_OF = {MAP.name: None, MAP50.name: AT_HALF}


@register("tasks", "detection")
class Detection(Recording):
    """Boxes, by centre maps [N, C + 4, h, w] or by the outputs of another known head.

    An image is judged by its boxes in its own pixels. Its own error is 1 less the F1 score of the
    boxes of at least `head.threshold` at an overlap of 0.5.
    """

    kind = like = "detection"
    output, unit = "boxes", "1"
    metrics = (MAP, MAP50)
    parts, labels = "by_class", "boxes"

    def __init__(
        self,
        head: Head | None = None,
        decoder: str | None = None,
        decode: Callable[..., Any] | None = None,
        loss: tuple[Callable[..., Any], str] | None = None,
        count: int = 0,
        anchors: NDArray[np.float64] | None = None,
    ) -> None:
        """Of a head, by a known decoder or a function; `loss` is the user's own, with its name.

        `count` is the number of classes where an output does not tell it; `anchors` those that
        boxes are offsets of, [A, 4].
        """
        self.head, self.decoder, self.decode, self.loss = head or Head(), decoder, decode, loss
        self.count, self.anchors = count, anchors
        self.joins_outputs = decode is not None or decoder in PAIRS

    def judged_by(self, spec: Spec) -> "Detection":
        """With the head that the spec describes.

        Raises:
            KDError: `task-metric`, `task-anchors`, or those of `load_factory`.
        """
        super().judged_by(spec)
        asked, decode, loss = spec.task, None, None
        if ":" in (asked.decode or ""):
            decode = load_factory(str(asked.decode), spec.folder)
        if asked.loss is not None:
            loss = load_factory(asked.loss, spec.folder), asked.loss
        file = asked.head.anchors
        anchors = None if file is None else read_anchors(file)
        return Detection(asked.head, asked.decode, decode, loss, len(spec.data.classes), anchors)

    @property
    def is_own_code(self) -> bool:
        """Whether a function of the user's decodes."""
        return self.decode is not None or super().is_own_code

    def is_annotated(self, photo: Photo) -> bool:
        """Whether it is a photo: one without boxes shows nothing."""
        return not photo.tensors

    def found(self, output: NDArray[Any], frame: Frame) -> Found:
        """The boxes of one image's output [1, ...] in the photo's pixels, the best first.

        Raises:
            KDError: `task-decode`, `task-scores` or `task-anchors`.
        """
        outputs = {self.output: output}
        if self.decode is not None:
            name = str(self.decoder)
            with users_code("task-decode", f"{name} fails", "[task] decode", DECODE_FIX):
                boxes = self.decode(outputs, frame.plane)
            some = checked(boxes, name, None).above(self.head.lowest)
        else:
            given = parted(self.decoder, outputs)
            name = find_decoder(self.decoder, {own: one.shape for own, one in given.items()})
            some = DECODERS[name].of(given, self.setting(name), frame.plane)
        middle = (some.boxes[:, :2] + some.boxes[:, 2:]) / 2
        in_photo = np.asarray((middle < np.array(frame.seen[::-1])).all(1))  # not in the padding
        some = some.at(in_photo)
        y, x = (whole / seen for whole, seen in zip(frame.photo, frame.seen, strict=True))
        return best(some.scaled(x, y, frame.photo), MOST)

    def head_of(self, shape: tuple[int, ...]) -> tuple[str, Setting]:
        """The decoder of an output of this shape, with what the spec says of the head.

        Raises:
            KDError: `task-decode`.
        """
        if self.decode is not None:
            return str(self.decoder), Setting(self.head)
        name = find_decoder(self.decoder, self._shapes(shape))
        return name, self.setting(name)

    def setting(self, name: str) -> Setting:
        """The head with the decoder's defaults for what the spec does not name, and its anchors."""
        own = {field: getattr(self.head, field) for field in self.head.model_fields_set}
        return Setting(Head(**{**DECODERS[name].defaults, **own}), self.anchors)

    def classes_in(self, shape: tuple[int, ...]) -> int:
        """How many classes an output of this shape has scores of; 0 where nothing tells it."""
        if self.decode is not None:
            return self.count
        shapes = self._shapes(shape)
        name = find_decoder(self.decoder, shapes)
        return DECODERS[name].classes(shapes, self.setting(name).head) or self.count

    def _shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of what the decoder takes, where the network's output has this shape."""
        empty = parted(self.decoder, {self.output: np.broadcast_to(np.float32(0), shape)})
        return {name: one.shape for name, one in empty.items()}

    def record(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """The image's error, and its matches.

        Not a number where the output is none.

        Raises:
            KDError: those of `found`; `labels-invalid`, a box is of a class that is no output;
                `task-classes`, nothing tells how many there are.
        """
        count = self.classes_in(output.shape)
        if not count:
            raise KDError(
                "task-classes",
                f"boxes by {self.decoder} do not tell how many classes there are",
                where="[data] classes",
                fix='name them, data.classes = ["red cell", "white cell"], in the order of their '
                "indices",
            )
        self._refuse_others(photo, count)
        if not np.isfinite(output).all():
            return np.full(1 + 4 * count + MOST * FIELDS, np.nan)
        found = matched(self.found(output, frame), photo.boxes, count)
        sure = found.scores >= self.head.threshold
        right = int(found.hits[0, 0, sure].sum())
        false = int((~found.hits[0, 0, sure] & ~found.spared[0, 0, sure]).sum())
        truths = int(found.truths[0].sum())
        wrong = false + truths - right
        error = wrong / (wrong + 2 * right) if wrong else 0.0
        return np.concatenate([[error], packed(found)])

    def told(self, output: NDArray[Any], frame: Frame) -> list[Floats]:
        """The sum of the scores of each class, and how unsure they are in each part of the image.

        A box of score s is unsure by (1 - |2 s - 1|)^2, the margin of arXiv 1809.09875 of the two
        answers that it is something or nothing, summed over boxes as there.
        """
        found, count = self.found(output, frame), self.classes_in(output.shape)
        kinds = found.classes if count else np.zeros(len(found), np.int64)
        sums = np.bincount(kinds, found.scores, max(count, 1)).astype(np.float64)[: max(count, 1)]
        middles = (found.boxes[:, 1::-1] + found.boxes[:, :1:-1]) / 2 / np.array(frame.photo)
        unsure = placed(middles, (1 - np.abs(2 * found.scores - 1)) ** 2)
        return [sums[None], unsure[None]]

    def photo_groups(self, photos: Sequence[Photo], classes: Sequence[str] | None) -> list[Stratum]:
        """The images in which something of each class is annotated."""
        held = [np.unique(classes_of(one.boxes[~is_crowd(one.boxes)])) for one in photos]
        return by_contents(held, lambda k: self.name_of_class(k, classes))

    def answer(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """The boxes that are sure enough, float32 [D, 6]: x0 y0 x1 y1 in its pixels, score, class.

        Args:
            output: of one image, [1, ...].
            frame: where the photo lies in the network's input.
        """
        found = self.found(output, frame).above(self.head.threshold)
        columns = [found.boxes, found.scores[:, None], found.classes[:, None]]
        return np.concatenate(columns, axis=1).astype(np.float32)

    def drawn(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """The same in pixels of the input."""
        return self.answer(output, Frame(frame.seen, frame.seen, frame.plane))

    def drawn_truth(self, photo: Photo, frame: Frame) -> NDArray[Any] | None:
        """The annotated boxes as `drawn` gives those found, without crowds."""
        boxes = photo.boxes[~is_crowd(photo.boxes)]
        y, x = (seen / whole for seen, whole in zip(frame.seen, frame.photo, strict=True))
        scaled = boxes[:, :4] * np.array([x, y, x, y], np.float32)
        return np.concatenate([scaled, np.ones((len(boxes), 1)), boxes[:, 4:]], axis=1).astype(
            np.float32
        )

    def curves(
        self, errors: Mapping[str, Floats], classes: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Precision at 101 recalls, at an overlap of 0.5, of each class that is annotated."""
        tables = {who: Table(rows) for who, rows in _rows_of(errors).items()}
        if not tables:
            return []
        return [
            {"class": self.name_of_class(int(k), classes), "index": int(k)}
            | {who: np.round(table.curve(int(k)), 4).tolist() for who, table in tables.items()}
            for k in np.flatnonzero(next(iter(tables.values())).truths)
        ]

    def tables(
        self, errors: Mapping[str, Floats], classes: Sequence[str] | None
    ) -> Sequence[Mapping[str, Any]]:
        """Average precision by class and size; boxes found, missed and false."""
        rows = _rows_of(errors)
        if not rows:
            return []
        return tables_of(rows, lambda k: self.name_of_class(k, classes), self.head.threshold)

    def facts(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """With the settings, but for the anchors themselves."""
        return super().facts(classes) | {"settings": self._named()}

    def _named(self) -> dict[str, Any]:
        head = self.head if self.decoder not in DECODERS else self.setting(str(self.decoder)).head
        told = {"decode": self.decoder, "head": head.model_dump(mode="json", exclude={"anchors"})}
        return {**told, "classes": self.count} if self.count else told

    def settings(self) -> dict[str, Any]:
        """The decoder that the spec names, if any, the head, how many classes, and the anchors."""
        if self.anchors is None:
            return self._named()
        return self._named() | {"anchors": packed_anchors(self.anchors)}

    def with_settings(self, settings: Mapping[str, Any]) -> "Detection":
        """The task of a bundle; a decode of the user's follows by `with_code`.

        Raises:
            ValueError: the settings are none of its.
        """
        decoder, head = settings.get("decode"), Head.model_validate(settings.get("head") or {})
        anchors = settings.get("anchors")
        if not all(one is None or isinstance(one, str) for one in (decoder, anchors)):
            raise ValueError("decode is no name, or anchors are no text")
        known, count = None if anchors is None else unpacked_anchors(anchors), 0
        if isinstance(told := settings.get("classes"), int):
            count = told
        return Detection(head, decoder, count=count, anchors=known)

    def with_code(self, given: Callable[..., Any]) -> "Detection":
        """With the decode that the bundle carries."""
        return Detection(self.head, self.decoder, given, count=self.count)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """`boxes`, each with its class, score and box, of what `answer` gave [D, 6]."""
        return {
            "boxes": [
                {
                    "class": self.name_of_class(int(kind), classes),
                    "score": round(float(score), 4),
                    "box": [round(float(value), 1) for value in box],
                }
                for *box, score, kind in output.tolist()
            ]
        }

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """One that a decoder knows, or the spec's own function is for.

        Raises:
            KDError: `task-decode`, the decoder that the spec names is none, or of other outputs.
        """
        if self.decode is not None:
            return None
        try:
            find_decoder(self.decoder, self._shapes(shape))
        except KDError as error:
            if self.decoder is not None:  # the spec's choice is at fault, and not the network
                raise
            return f"{error.message}; {error.fix}"
        return None

    def outputs_of(self, shape: tuple[int, ...]) -> int:
        """The classes that an output of this shape has scores of; 0 where it does not tell."""
        return self.classes_in(shape)

    def has_label_loss(self, shape: tuple[int, ...]) -> bool:
        """Of centre maps, for which one is built in; of other heads by the user's own."""
        return self.loss is not None or len(shape) == 4

    def check_labels(
        self, labels: Sequence[float], outputs: int, classes: Sequence[str] | None
    ) -> str | None:
        """One output a class; the boxes themselves are looked at where they are judged."""
        if classes is not None and outputs and len(classes) != outputs:
            return f"the data has {len(classes)} classes, the network scores of {outputs}"
        return None

    def _refuse_others(self, photo: Photo, count: int) -> None:
        """Refuse a box of a class that is no output.

        Raises:
            KDError: `labels-invalid`.
        """
        most = int(classes_of(photo.boxes).max(initial=-1))
        if count and most >= count:
            raise KDError(
                "labels-invalid",
                f"{photo.name} has a box of class {most}, the network {count} classes",
                where="[data], for detection",
                fix="give the data the network's classes, or a network with an output for each",
            )

    def check_photo(self, photo: Photo, outputs: int) -> None:
        """Refuse a box of a class that the network has no output for.

        Raises:
            KDError: `labels-invalid`.
        """
        self._refuse_others(photo, outputs)

    def constant_scores(
        self, train: Sequence[float], predicted: Sequence[Any] | Floats, true: Sequence[float]
    ) -> dict[str, float]:
        """Of finding nothing."""
        table = np.array(predicted, np.float64)
        table[:, -MOST * FIELDS :] = ABSENT
        return self.scores(table, ())

    def parts_of(
        self, true: Floats, errors: Floats, classes: Sequence[str] | None
    ) -> list[Stratum]:
        """The images, once for each class of which a box is annotated: `class` and its `index`."""
        if not isinstance(errors, Recorded):
            return []
        every = np.arange(len(errors))
        truths = Table(errors.rows[errors.places]).truths
        return [
            ({"class": self.name_of_class(int(k), classes), "index": int(k)}, every)
            for k in np.flatnonzero(truths)
        ]

    def metric_of(self, metric: Metric, about: Mapping[str, Any]) -> Metric:
        """That of the one class."""
        if "index" not in about:
            return metric
        place, levels = int(about["index"]), LEVELS_OF[metric.name]
        return replace(metric, of=_over(lambda t, w: t.by_class(w, levels)[:, place]))
