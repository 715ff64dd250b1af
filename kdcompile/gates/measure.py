"""Predictions of a build's networks on the test images, and the latencies of two of them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.candidate_runner import Runner
from kdcompile.backends.deployed_form import DeployedForm, deployed_form
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.config.step import Step
from kdcompile.core.measurement import Settings
from kdcompile.core.measurement import measure as measure_latency
from kdcompile.core.report import Measurement
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.context import Earlier, Floats, Latency, Origin, Parity
from kdcompile.gates.deployed import STUDENT, deployed
from kdcompile.gates.evaluate import Evaluation, evaluate, example_arrays, pick_examples
from kdcompile.gates.reference_bundle import PREVIOUS, EarlierNetwork
from kdcompile.gates.registry import find_gate
from kdcompile.latency.environment import fingerprint_id, usable_cores
from kdcompile.latency.interference import MOST, TRIES, quietest
from kdcompile.stats.latency_interval import PairedTimes
from kdcompile.targets import Target
from kdcompile.tasks.agreement import LIMIT_DB
from kdcompile.tasks.task import Task

OVERFLOW = 1e30  # a relative error without bound: JSON has no infinity
TIMING = Settings(blocks=30, warmup=3, seconds=30.0)
log = logging.getLogger("kdcompile")


@dataclass(frozen=True, eq=False)
class Measured:
    """What ran, and where.

    Args:
        predicted: by network, float64 [N].
        maps: errors by the task's `map_metrics`, by network, float64 [N, M].
        difficulty: how far the deployed network is from the truth on each image, [N].
        shipped: the name of the deployed network.
        parity: of the deployed network.
        latency: of teacher and student.
        extra: further latencies.
        deployed: where the deployed network ran.
        host: where the others ran.
        chosen: images that the report draws, by kind.
        examples: their arrays, by kind.
        earlier: the bundle whose network is `previous` in `predicted`, if one was asked for.
    """

    predicted: Mapping[str, Floats]
    maps: Mapping[str, Floats]
    difficulty: Floats
    shipped: str
    parity: Parity
    latency: Latency
    extra: tuple[Measurement, ...]
    deployed: Origin
    host: Origin
    chosen: Mapping[str, int]
    examples: Mapping[str, Mapping[str, NDArray[np.uint8] | NDArray[np.float32]]]
    earlier: Earlier | None


def measure(
    step: Step,
    target: Target,
    photos: Sequence[Photo],
    prepare: tuple[Preprocess, Preprocess],
    task: Task,
    classes: Sequence[str] | None,
    earlier: EarlierNetwork | None = None,
) -> Measured:
    """Run the networks by ONNX Runtime here, and the engine, where there is one, at its board.

    The network of an earlier bundle runs beside them where one is given. `prepare` is the
    preprocessing of the exported networks, and of the one that ships.

    Raises:
        KDError: an image, a network or the board failed.
    """
    inputs, threads, (preprocess, ships) = step.inputs, usable_cores(), prepare
    paths = networks(inputs, with_shipped=step.board is None)
    written = target.runtime != "onnxruntime"  # which ships what it makes of the file itself
    here = {name: open_session(path, threads, as_written=written) for name, path in paths.items()}
    host = Origin(fingerprint_id(), here["teacher"].name, here["teacher"].version, "host")
    with deployed(step) as board:
        runners: dict[str, Runner] = dict(here)
        shipped = _shipped(inputs)
        if board is not None:
            shipped, runners[STUDENT] = STUDENT, board.student
        own, about = {shipped: ships} if ships.in_graph else {}, None
        if earlier is not None:
            runners[PREVIOUS], about = earlier.runner(board, threads, written)
            own[PREVIOUS] = earlier.preprocess
        pair = ("student_fp32", shipped)
        found = evaluate(runners, pair, photos, preprocess, task, classes, own)
        extra: tuple[Measurement, ...] = ()
        row = preprocess.input_of(photos[0]) if task.takes_rows else None
        if board is None:
            with deployed_form(preprocess, step.spec.export.preprocess) as form:
                latency = _time(step, target, here, shipped, form, row)
        else:
            shape = step.spec.export.profile[1]
            latency, extra = board.times(ships.noise(shape, step.spec.seed) if row is None else row)
        parity = found.parity
        if board is None:
            parity = _parity(inputs, found, shipped, ships.in_graph)
        chosen = {} if task.takes_rows else pick_examples(found.difficulty)  # to be drawn
        drawn: dict[str, Runner] = {}
        if task.is_dense or task.records:
            drawn = {"student": runners[shipped], "teacher": here["teacher"]}
        examples = {
            kind: example_arrays(
                photos[index],
                preprocess,
                drawn,
                task,
                {"student": own.get(shipped, preprocess)},
            )
            for kind, index in chosen.items()
        }
        origin = host if board is None else board.origin
    return Measured(
        found.predicted, found.maps, found.difficulty, shipped, parity, latency, extra, origin,
        host, chosen, examples, about,
    )  # fmt: skip


def networks(inputs: Mapping[str, Artifact], with_shipped: bool = True) -> dict[str, Path]:
    """The networks to run here, by name.

    The shipped one is among them only `with_shipped` and where it is a file of its own.
    """
    paths = {
        "teacher": inputs["export"].file("teacher.onnx"),
        "student_fp32": inputs["export"].file("student.onnx"),
        "student_int8": inputs["calibrate"].file("student_int8.onnx"),
    }
    if with_shipped and _shipped(inputs) == STUDENT:
        paths[STUDENT] = inputs["compile"].file("model.onnx")
    return paths


def _shipped(inputs: Mapping[str, Artifact]) -> str:
    """The name of the network that `model.onnx` is, by its hash: the judged file is the shipped."""
    sha = inputs["compile"].files["model.onnx"]
    if sha == inputs["export"].files["student.onnx"]:
        return "student_fp32"
    if sha == inputs["calibrate"].files["student_int8.onnx"]:
        return "student_int8"
    return STUDENT


def _parity(
    inputs: Mapping[str, Artifact], found: Evaluation, shipped: str, in_graph: bool
) -> Parity:
    """The deployed network's.

    Where that is the fp32 export itself, export's against PyTorch. Where it is fp16, export's with
    every layer rounded to half: a CPU computes an fp16 file in fp32 and would show no difference.
    With the preprocessing inside, it is no better than the file that ships is on the test images.
    """
    precision = inputs["compile"].json("choice.json")["precision"]
    if precision == "fp16":
        name, mode = "student_fp16", "fp16 storage of every layer against fp32, in PyTorch"
    elif shipped == "student_fp32":
        name, mode = "student", "fp32 ONNX against PyTorch"
    else:
        return found.parity
    known = inputs["export"].json("parity.json")[name]
    if in_graph and found.parity.sqnr_db < (known["sqnr_db"] or -LIMIT_DB):
        return found.parity
    if known["sqnr_db"] is None:
        return Parity(-LIMIT_DB, OVERFLOW, known["n"], f"{mode}: it overflows")
    return Parity(
        min(known["sqnr_db"], LIMIT_DB),
        known["max_rel_error"],
        known["n"],
        f"{mode}, on validation images",
    )


def _time(
    step: Step,
    target: Target,
    runners: Mapping[str, Runner],
    shipped: str,
    form: DeployedForm,
    row: NDArray[np.float32] | None = None,
) -> Latency:
    """Teacher and student at the typical input shape, or on a row.

    Where this machine is the target the deployed file is timed. For another device both sides are
    timed in fp32: how its int8 or fp16 compares is not for this CPU to say. A measurement that
    decides a gate is repeated where others took the CPUs.
    """
    decides = target.kind == "cpu" and any(
        "latency" in find_gate(name).needs and settings.evidence != "predicted"
        for name, settings in step.spec.gates.named().items()
    )
    precision = step.inputs["compile"].json("choice.json")["precision"]
    shape, threads = step.spec.export.profile[1], usable_cores()
    mode = f"ONNX Runtime CPU, {'x'.join(map(str, shape))}, {threads} threads, alternating"
    if target.kind != "cpu" and precision != "fp32":
        mode += f", both in fp32; {precision} is chosen for the device"
        precision, shipped = "fp32", "student_fp32"
    teacher, student, prepare = runners["teacher"], runners[shipped], form.prepare.deployed("host")
    if form.prepare.in_graph and shipped == STUDENT:  # the teacher would be deployed likewise
        written = target.runtime != "onnxruntime"
        path = form.file(step.inputs["export"].file("teacher.onnx"))
        teacher, prepare = open_session(path, threads, as_written=written), form.prepare
        mode += ", uint8 pixels in, normalised in the graph"
    image = prepare.noise(shape, step.spec.seed) if row is None else row
    log.info("verify: timing teacher and student, at most %.0f s", TIMING.seconds)
    pair = {"teacher": lambda: teacher(image), "student": lambda: student(image)}
    found, others = quietest(lambda: measure_latency(pair, TIMING), tries=TRIES if decides else 1)
    times = PairedTimes(found.ms["teacher"], found.ms["student"], found.repeats)
    mode += ", the fastest call of each block"
    if others > MOST:
        mode += f"; other processes took {others:.0%} of the CPUs' time: on an idle machine it may "
        mode += "differ"
    return Latency(times, precision, mode, others=others)
