"""Refinements of an int8 network, each kept only where it measurably helps.

`equalise` scales channels between layers, `bias` takes away shifts of the mean, `rounding` learns
which way each weight is rounded. Papers report their gains on networks that are hard to quantise;
on one that is not, a refinement is noise, or harm. So each is tried on top of those kept before it
and evaluated on images that it was not fitted to.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx import ModelProto

from kdcompile.calib.bias import correct_bias
from kdcompile.calib.equalise import equalise
from kdcompile.calib.keep_if_better import Outcome, Worth, compare, enough
from kdcompile.calib.qdq import insert_qdq
from kdcompile.calib.table import CalibrationTable
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.onnx_graph.graph import Floats, Images

FIT_IMAGES = 32  # enough to fit to; each refinement reads them once for every layer


@dataclass(frozen=True)
class Inputs:
    """The network's inputs of some photos, read anew at each iteration."""

    photos: Sequence[Photo]
    prepare: Preprocess

    def __len__(self) -> int:
        return len(self.photos)

    def __iter__(self) -> Iterator[Floats]:
        return (self.prepare.input_of(photo) for photo in self.photos)

    def frames(self) -> list[Frame]:
        """Where each photo lies in its input."""
        return [self.prepare.view(photo)[1] for photo in self.photos]


@dataclass(frozen=True)
class Record:
    """What came of one refinement: mean SQNR before and after, what it gained, its details.

    After it, and `worth`, are None where the network gave it nothing to do.
    """

    name: str
    kept: bool
    why: str
    before_db: float
    after_db: float | None
    worth: Worth | None
    details: Any


@dataclass(frozen=True)
class Refined:
    """The float32 network and the table that `insert_qdq` makes the refined int8 network of.

    Where nothing was kept they are those that were given.
    """

    model: ModelProto
    table: CalibrationTable
    records: tuple[Record, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """The records as plain JSON values."""
        return [asdict(record) for record in self.records]


@dataclass(frozen=True)
class Trial:
    """A network on trial.

    `reference` computes what the original network does and names its tensors as `model` does;
    `model` is what will be quantised with `table`.
    """

    reference: ModelProto
    model: ModelProto
    table: CalibrationTable
    layers: Collection[str] | None

    def quantise(self, model: ModelProto) -> ModelProto:
        """The Q/DQ network of a float32 one."""
        return insert_qdq(model, self.table, layers=self.layers)


Calibrate = Callable[[ModelProto], CalibrationTable]
Step = Callable[[Trial, Images, Calibrate], tuple[Trial, list[Any]]]


def _equalise(trial: Trial, images: Images, calibrate: Calibrate) -> tuple[Trial, list[Any]]:
    model, pairs = equalise(trial.model)
    if not pairs:
        return trial, []
    return Trial(model, model, calibrate(model), trial.layers), pairs


def _bias(trial: Trial, images: Images, calibrate: Calibrate) -> tuple[Trial, list[Any]]:
    model, names = correct_bias(trial.reference, trial.model, images, trial.quantise)
    return replace(trial, model=model), names


def _rounding(trial: Trial, images: Images, calibrate: Calibrate) -> tuple[Trial, list[Any]]:
    from kdcompile.calib.rounding import round_weights  # loads torch

    model, layers = round_weights(trial.reference, trial.model, images, trial.quantise)
    return replace(trial, model=model), [asdict(layer) for layer in layers]


REFINEMENTS: Mapping[str, Step] = {"equalise": _equalise, "bias": _bias, "rounding": _rounding}
FIRST = "equalise"  # it scales weights by input channel, which would take them off their grid


def refine(
    model: ModelProto,
    table: CalibrationTable,
    asked: Sequence[str],
    images: Images,
    calibrate: Calibrate,
    evaluate: Callable[[ModelProto], Outcome],
    layers: Collection[str] | None = None,
) -> Refined:
    """Try each refinement that is asked for, and keep it where it helps.

    Equalisation goes first wherever it stands, the others in their order.

    Args:
        model: the float32 network; it is left as it is, and stays what others compare with.
        table: its calibration table.
        asked: names in `REFINEMENTS`.
        images: to fit to; `FIT_IMAGES` of the calibration images are enough.
        calibrate: makes the table of a changed network.
        evaluate: judges a quantised network on images that are not among `images`; see
            `worth.against`.
        layers: to quantise, as `insert_qdq` takes them.

    Raises:
        KDError: `refine-few`: too few images to fit to or to judge on.
    """
    trial = Trial(model, model, table, layers)
    if not asked:
        return Refined(model, table, ())
    enough(len(images), "[data] train, [quantize] images", "training images")
    before = evaluate(trial.quantise(model))
    enough(len(before.sqnr_db), "[data] val", "validation images")
    records = []
    for name in sorted(dict.fromkeys(asked), key=lambda name: name != FIRST):
        tried, details = REFINEMENTS[name](trial, images, calibrate)
        if not details:
            records.append(_idle(name, before))
            continue
        after = evaluate(tried.quantise(tried.model))
        worth = compare(before, after)
        records.append(_record(name, before, after, worth, details))
        if worth.is_worth_it:
            trial, before = tried, after
    return Refined(trial.model, trial.table, tuple(records))


def _idle(name: str, before: Outcome) -> Record:
    why = "no layer of this network has what it works on"
    return Record(name, False, why, before.mean_db, None, None, [])


def _record(name: str, before: Outcome, after: Outcome, worth: Worth, details: Any) -> Record:
    kept = worth.is_worth_it
    return Record(name, kept, worth.why, before.mean_db, after.mean_db, worth, details)
