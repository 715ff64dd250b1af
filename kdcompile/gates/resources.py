"""Energy and memory of a build's network, where its device is available, and their numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.config.gates import GateSpec
from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.report import GateResult, Measurement
from kdcompile.gates.board_record import NoUsage, Usage
from kdcompile.gates.context import MODES, VerifyContext
from kdcompile.gates.registry import any_needs
from kdcompile.latency.energy_memory import Resources, measure
from kdcompile.latency.subjects import onnx_record
from kdcompile.remote.open import Place, open_place
from kdcompile.remote.usage import Absent, energy_of, memory_of
from kdcompile.targets import Target
from kdcompile.tasks.task import ports_of, preprocess_of

HERE = "onnxruntime"


def measured_resources(step: Step, target: Target) -> Resources | None:
    """What the deployed network takes of its device; None where no gate of the spec asks.

    At the board where there is one; of a CPU target here, by ONNX Runtime; else of nothing.

    Raises:
        KDError: the board does not answer, or the network does not run there.
    """
    if not any_needs(step.spec.gates, "usage"):
        return None
    shape, compiled, board = step.spec.export.profile[1], step.inputs["compile"], step.board
    inputs = _inputs(step.spec, shape)
    if board is not None:

        def take(place: Place, name: str) -> Mapping[str, Any]:
            engine.take(place, compiled.file("model.engine"), name)
            return inputs

        return measure(lambda: engine.at(board), take)
    if target.kind != "cpu":
        reason = f"no {target.title} is at hand: name one with --via"
        return Resources(Absent(reason), Absent(reason))

    def load(place: Place, name: str) -> Mapping[str, Any]:
        precision = compiled.json("choice.json")["precision"]
        record = onnx_record(place.about, compiled.files["model.onnx"], precision)
        path = place.put(compiled.file("model.onnx"))
        place.call("load", path=path, name=name, expected=record)
        return inputs

    return measure(lambda: open_place(None, HERE), load)


def _inputs(spec: Spec, shape: Sequence[int]) -> Mapping[str, NDArray[Any]]:
    """Random values for each input; of whole numbers, which may look something up, zeros."""
    random, ports = np.random.default_rng(spec.seed), ports_of(spec)
    if ports is None:
        prepare = preprocess_of(spec).deployed(spec.export.preprocess)
        return {engine.INPUT: prepare.noise(shape, spec.seed)}
    blank = {port.name: np.zeros(port.shape, port.dtype) for port in ports.ports}
    return {
        name: random.standard_normal(array.shape).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in blank.items()
    }


def resources_of(context: VerifyContext) -> Resources:
    """What `verify` measured of them; absent where it did not."""
    nothing = Absent(
        "not measured: kdcompile build --via PLACE reads it, or build_engine.py of a bundle's kit"
    )
    return context.resources or Resources(nothing, nothing)


def of_board(usage: Usage | NoUsage | None) -> Resources | None:
    """The same, from the readings that a board's kit took; None where it took none."""
    if usage is None:
        return None
    if isinstance(usage, NoUsage):
        nothing = Absent(f"on the board: {usage.absent}")
        return Resources(nothing, nothing)
    power, before, after = (part.model_dump() for part in (usage.power, usage.before, usage.after))
    return Resources(energy_of(power), memory_of(before, after))


def resource_numbers(context: VerifyContext) -> tuple[Measurement, ...]:
    """Every number for the report; none of what is absent."""
    found, told = resources_of(context), []
    if not isinstance(found.energy, Absent):
        e = found.energy
        mode = f"{MODES[e.mode]}; {e.source} {' + '.join(e.judged)}, {e.hz:.0f} readings a second"
        told = [
            context.measurement(
                "energy of an inference", e.mj, "mJ", low=e.low, high=e.high, n=e.samples, mode=mode
            ),
            context.measurement(
                "energy of an inference above idle", e.above_idle_mj, "mJ", n=e.samples, mode=mode
            ),
            context.measurement("power", e.watts, "W", n=e.samples, mode=mode),
            context.measurement("idle power", e.idle_watts, "W", mode="with the network loaded"),
            *(
                context.measurement(f"power of {rail}", watts, "W", n=e.samples, mode=mode)
                for rail, watts in e.rails.items()
                if len(e.rails) > 1
            ),
        ]
    if not isinstance(found.memory, Absent):
        m = found.memory
        told.append(context.measurement("peak memory", m.mb, "MB", mode=m.what))
    return tuple(told)


def unread(
    name: str, settings: GateSpec, threshold: str, context: VerifyContext, why: Absent
) -> GateResult:
    """The result of a gate whose number nothing tells: skipped, which is not passed."""
    return GateResult(
        name, "skipped", context.evidence, settings.required, threshold, "no reading", why.reason
    )
