"""Audit of a calibration, `audit.json`: its images and the stability of its ranges.

Which images, and what part of the training set they stand for; for each tensor how much is clipped,
how much the scale depends on the sample, and how far training images that were not chosen lie from
those that were. What looks wrong is a warning.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdcompile.calib.chosen import ChosenImages
from kdcompile.calib.histogram import Histogram, merged
from kdcompile.calib.observers import Calibrator
from kdcompile.calib.table import CalibrationTable
from kdcompile.core import plugins
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.stats.bootstrap import resamples
from kdcompile.tasks.task import Task

LEVELS = 128  # bins of a comparison: as many as int8 has magnitudes
DRAWS = 16  # leaves a deviation uncertain by about a fifth


def scale_spread(
    folds: Sequence[Histogram], choose: Callable[[Histogram], float], seed: int = 0
) -> float | None:
    """The relative standard deviation of a scale over resampled calibration sets.

    Bootstrap (Efron 1979) over folds of the images: `DRAWS` times as many folds as there are are
    drawn with replacement, and a range is chosen for their histograms together. None for a single
    fold, of which nothing can be learnt; 0 for a tensor of zeros.

    Args:
        folds: one tensor's histogram for each part of the images.
        choose: the calibrator.
        seed: of the draws.
    """
    if len(folds) < 2:
        return None
    ranges = []
    for picks in resamples(len(folds), DRAWS, seed):
        times = np.bincount(picks, minlength=len(folds))
        drawn = Histogram()
        for fold, count in zip(folds, times, strict=True):
            drawn.merge(fold, int(count))
        ranges.append(choose(drawn))
    mean = float(np.mean(ranges))
    return float(np.std(ranges, ddof=1)) / mean if mean else 0.0


def jensen_shannon(a: Histogram, b: Histogram) -> float:
    """The Jensen-Shannon divergence of two samples' magnitudes, in bits: 0 the same, 1 disjoint.

    Over `LEVELS` equal bins that cover both, so that it sees what int8 can tell apart.
    """
    span = max(a.span, b.span)
    p, q = (h.over(span).reshape(LEVELS, -1).sum(axis=1) / h.total for h in (a, b))
    middle = (p + q) / 2
    return max(0.0, sum(_kl(part, middle) for part in (p, q)) / 2)


def usual_drift(folds: Sequence[Histogram]) -> float | None:
    """The largest divergence of a fold from the others together: what chance alone makes.

    None for a single fold.
    """
    if len(folds) < 2:
        return None
    rests = (merged(other for other in folds if other is not fold) for fold in folds)
    return max(jensen_shannon(fold, rest) for fold, rest in zip(folds, rests, strict=True))


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return float(np.sum(p[some] * np.log2(p[some] / q[some])))


Record = dict[str, Any]
ByTensor = Mapping[str, Histogram]

FOLDS = 8
HELD_OUT = 16
FEW = 32  # distinct images; 128 to 512 are usual
DRIFT_FACTOR = 2.0  # over the largest that a part of the chosen images has
LIMITS = (
    ("calib-saturation", "saturation", 0.01, "{:.1%} of {} is clipped"),
    (
        "calib-unseen", "held_out_saturation", 0.01,
        "on training images that do not calibrate, {:.1%} of {} is clipped",
    ),
    ("calib-spread", "scale_spread", 0.1, "with other images the scale varies by {:.0%}: {}"),
    ("calib-drift", "drift", 0.01, "other training images differ by {:.3f} bits: {}"),
)  # fmt: skip


def held_out(train: Sequence[Photo], chosen: ChosenImages, n: int = HELD_OUT) -> list[Photo]:
    """At most `n` training images, spread evenly, none of them chosen by itself or as a twin."""
    taken, hashes = {id(photo) for photo in chosen.photos}, {sha for _, sha in chosen.identities}
    others = [photo for photo in train if id(photo) not in taken]
    return [photo for photo in evenly(others, n) if photo.sha256() not in hashes]


def about_images(chosen: ChosenImages, how: str, asked: int, seed: int) -> Record:
    """The chosen images: by which rule, how many, their names and hashes, twins and blanks."""
    return {
        "select": how,
        "seed": seed,
        "asked": asked,
        "n": len(chosen.photos),
        "distinct": chosen.distinct,
        "duplicates": chosen.duplicates,
        "constant": chosen.constant,
        "images": [{"name": name, "sha256": sha} for name, sha in chosen.identities],
    }


def strata(
    train: Sequence[Photo], chosen: Sequence[Photo], task: Task, classes: Sequence[str] | None
) -> list[Record]:
    """How many images each part of the training set has, and how many of them were chosen.

    The parts are the task's: thirds of the images by their true count or value, or the classes;
    of masks and boxes the images that have something of a class, which may have several.
    """
    taken = {id(photo) for photo in chosen}
    return [
        {**what, "train": len(part), "chosen": sum(id(train[i]) in taken for i in part)}
        for what, part in task.photo_groups(train, classes)
    ]


def about_tensors(
    table: CalibrationTable, folds: Sequence[ByTensor], held: ByTensor | None
) -> dict[str, Record]:
    """For each tensor, None where it cannot be known:

    `saturation`, the share of the chosen images' values that is clipped; `scale_spread`, see
    `drift.scale_spread`; `drift`, the Jensen-Shannon divergence in bits between the chosen images
    and those held out; `usual_drift`, the largest that one of the folds has from the others;
    `held_out_saturation`.

    Args:
        table: the ranges; of those that no calibrator here chose the spread is not known. A cache
            may have more of them than were observed, which are left out.
        folds: histograms of parts of the chosen images.
        held: histograms of training images that were not chosen, if there were any.
    """
    known = plugins.plugin("calibrators", table.calibrator)
    choose: Calibrator | None = None if known is None else known.value
    found = {}
    observed = {name: entry for name, entry in table.tensors.items() if name in folds[0]}
    for name, entry in observed.items():
        parts = [fold[name] for fold in folds]
        seen, other = merged(parts), held[name] if held else None
        found[name] = {
            "scale": entry.scale,
            # observed here: a table that was read from a cache does not know it
            "saturation": seen.clipped(entry.amax) if entry.amax else 0.0,
            "is_zero": entry.amax == 0.0,
            "scale_spread": scale_spread(parts, choose) if choose else None,
            "usual_drift": usual_drift(parts),
            "drift": jensen_shannon(seen, other) if other else None,
            "held_out_saturation": other.clipped(entry.amax) if other and entry.amax else None,
        }
    return found


def record(
    images: Record,
    parts: Sequence[Record],
    held: Sequence[Photo],
    tensors: Mapping[str, Record],
    train: int,
) -> Record:
    """The record: what the functions above gave, and the warnings that follow from it.

    A warning is a `code` and a `message`; `train` is how many images the training set has.
    """
    found = [*_image_warnings(images), *_strata_warnings(parts, images["n"], train)]
    found += _tensor_warnings(tensors)
    return {
        "images": images,
        "strata": list(parts),
        "held_out": [photo.name for photo in held],
        "tensors": dict(tensors),
        "warnings": [{"code": code, "message": message} for code, message in found],
    }


def summary(made: Record) -> Record:
    """The record in a few values: the largest of each measure over the tensors, and warnings."""
    worst = {}
    for measure in ("saturation", "scale_spread", "drift"):
        known = [t[measure] for t in made["tensors"].values() if t[measure] is not None]
        worst[f"worst_{measure}"] = max(known, default=None)
    return {
        "distinct_images": made["images"]["distinct"],
        **worst,
        "warnings": [warning["message"] for warning in made["warnings"]],
    }


def _image_warnings(images: Record) -> list[tuple[str, str]]:
    found = []
    n, distinct, asked = images["n"], images["distinct"], images["asked"]
    if distinct < n:
        twins = n - distinct
        found.append(("calib-duplicate", f"{twins} of {n} calibration images repeat another"))
    if images["constant"]:
        blank = len(images["constant"])
        found.append(("calib-constant", f"{blank} of {n} calibration images are of one colour"))
    if n < asked:
        found.append(("calib-fewer", f"quantize.images is {asked}, the train split has {n}"))
    if distinct < FEW:
        found.append(("calib-few", f"{distinct} distinct images calibrate; 128 to 512 are usual"))
    return found


def _strata_warnings(parts: Sequence[Record], n: int, train: int) -> list[tuple[str, str]]:
    """Parts of the training set with less than half of the images due to them."""
    found = []
    for part in parts:
        due = n * part["train"] / train
        if due >= 2 and part["chosen"] < due / 2:
            what = part["class"] if "class" in part else f"{part['low']:g} to {part['high']:g}"
            message = f"calibration images of {what}: {part['chosen']}, where {due:.0f} are due"
            found.append(("calib-strata", message))
    return found


def _tensor_warnings(tensors: Mapping[str, Record]) -> list[tuple[str, str]]:
    """One warning for each measure over its limit, with the worst tensor."""
    found = []
    for code, measure, limit, text in LIMITS:
        over = {n: t[measure] for n, t in tensors.items() if (t[measure] or 0.0) > limit}
        if measure == "drift":
            over = {n: v for n, v in over.items() if _is_unusual(v, tensors[n]["usual_drift"])}
        if over:
            worst = max(over, key=lambda name: float(over[name]))
            others = f" ({len(over) - 1} more tensors)" if len(over) > 1 else ""
            found.append((code, text.format(over[worst], worst) + others))
    zero = [name for name, tensor in tensors.items() if tensor["is_zero"]]
    if zero:
        others = f" ({len(zero) - 1} more tensors)" if len(zero) > 1 else ""
        found.append(("calib-zero", f"{zero[0]} is zero on every calibration image{others}"))
    return found


def _is_unusual(drift: float, usual: float | None) -> bool:
    return usual is None or drift > DRIFT_FACTOR * usual
