"""The whole frame of a build's sample, measured where its device is available, else predicted."""

import json
import math
from collections.abc import Mapping, Sequence

from kdcompile.bundle.user_files import code_of
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.report import Measurement
from kdcompile.data.photo import Photo
from kdcompile.gates.board_record import FrameRecord
from kdcompile.gates.context import Origin, Prediction, VerifyContext
from kdcompile.gates.registry import any_needs
from kdcompile.latency import frame
from kdcompile.latency.frame_sample import BY_FILES, Shipped, pictures_of, run_by
from kdcompile.latency.frame_times import WORDS, FrameTimes, PredictedFrame, copies_ms, reduced
from kdcompile.latency.subject import DEFAULT
from kdcompile.remote.frame import ENGINE, TASK
from kdcompile.remote.usage import Absent
from kdcompile.targets import Target
from kdcompile.tasks.task import task_of

NO_SAMPLE = ("pillow-missing", "sample-failed", "frame-images")  # the network itself runs
PIXELS = 4  # are as large as a float32
Found = FrameTimes | PredictedFrame | Absent


def frame_of(
    step: Step,
    target: Target,
    photos: Sequence[Photo],
    classes: Sequence[str] | None,
    prediction: Prediction | None,
) -> Found | None:
    """The whole frame of the deployed sample; None where no gate of the spec asks.

    At the board where there is one; of a CPU target here; else as far as a model tells it.

    Args:
        step: `verify`.
        target: what the build is for.
        photos: of the test split; some of them are timed.
        classes: the names that the data has for them.
        prediction: of the target's latency, at the chosen precision.

    Raises:
        KDError: the board does not answer. A sample that does not run there is absent.
    """
    if not any_needs(step.spec.gates, "frame"):
        return None
    if step.spec.export.inputs:
        return Absent("the network takes named tensors and no image: it has no whole frame")
    is_here = step.board is not None and step.board.evidence == "device"
    if target.kind != "cpu" and not is_here:
        return predicted(step, target, prediction)
    via = None if step.board is None else step.board.via
    shipped, pictures = _shipped(step, classes), pictures_of(photos)
    try:
        return frame.measure_frame(shipped, pictures, via, frame.EFFORT, step.spec.seed)
    except KDError as error:
        if error.code not in NO_SAMPLE:
            raise
        return Absent(f"{error.message}; {error.fix}")


def _shipped(step: Step, classes: Sequence[str] | None) -> Shipped:
    """The bundle's sample, before there is the bundle."""
    compiled, backend = step.inputs["compile"], DEFAULT
    if ENGINE in compiled.files:
        assert step.board is not None, "who has an engine has its board"
        backend = step.board.backend
    files = run_by({name: compiled.file(name) for name in compiled.files})
    precision, task = compiled.json("choice.json")["precision"], task_of(step.spec)
    if task.settings():
        files[TASK] = json.dumps(task.settings()).encode()
    files |= code_of(step.spec.task.decode or "", step.spec.folder)
    return Shipped(task.like, classes, files, precision, backend)


def predicted(step: Step, target: Target, prediction: Prediction | None) -> PredictedFrame | Absent:
    """The parts that a model tells: inference, and on a Jetson the copies over its memory."""
    if prediction is None:
        return Absent(f"no latency estimate of {target.name} at the chosen precision")
    shapes = [step.spec.export.profile[1], step.inputs["teacher"].json("teacher.json")["output"]]
    given, made = (float(math.prod(shape)) for shape in shapes)
    if step.spec.export.preprocess == "in-graph":
        given /= PIXELS
    copies = copies_ms(given + made, target.bandwidth_gbs) if target.kind == "jetson" else None
    return PredictedFrame(prediction.student, prediction.band, copies)


def of_board(record: FrameRecord | None, seed: int) -> FrameTimes | None:
    """The frame that a board's kit timed; None where it timed none."""
    if record is None:
        return None
    mode = f"infer.py on {record.images} image files, {record.sizes}; {BY_FILES}"
    parts = {str(name): ms for name, ms in record.parts.items()}
    return reduced(record.blocks, parts, mode, seed)


def frame_numbers(context: VerifyContext) -> tuple[Measurement, ...]:
    """The frame and its parts for the report; none of what is absent."""
    found = context.frame
    if isinstance(found, FrameTimes):
        whole = context.measurement(
            "whole frame", found.ms, "ms", low=found.low, high=found.high, n=found.n,
            mode=found.mode,
        )  # fmt: skip
        return (whole, *_parts(context, found.parts, found.mode, None))
    if isinstance(found, PredictedFrame):
        parts = {"inference alone": found.inference}
        parts |= {} if found.copies is None else {"copies at the memory's peak rate": found.copies}
        mode = f"not predicted: {', '.join(found.missing)}"
        return _parts(context, parts, mode, context.model)
    return ()


def _parts(
    context: VerifyContext, parts: Mapping[str, float], mode: str, origin: Origin | None
) -> tuple[Measurement, ...]:
    return tuple(
        context.measurement(f"frame: {WORDS.get(name, name)}", ms, "ms", origin=origin, mode=mode)
        for name, ms in parts.items()
    )
