"""The batch that made a loss non-finite, kept with the weights that met it."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.core.readers import parse_json
from kdcompile.data.augment import Batch
from kdcompile.distill.qad import is_quantised
from kdcompile.models.factory import write_weights
from kdcompile.models.weights import read_weights

if TYPE_CHECKING:
    from kdcompile.distill.phase import StageRun

BATCH, NETWORKS, RECORD = ("images", "target", "photo"), ("student", "recipe", "first"), "moment"
INSIDE = "inside"  # of a batch of maps


@dataclass(frozen=True)
class Moment:
    """What a step depended on beside its batch and the networks.

    step: of the training, from 1; stage: its name; seed: of torch's random numbers; bf16: whether
    the teacher and the student's forward pass ran in bfloat16; quantised: whether the student did
    in int8; weights: of the terms; scales: of the objective; terms: as they were, `loss` first.
    """

    step: int
    stage: str
    seed: int
    bf16: bool
    quantised: bool
    weights: Mapping[str, float]
    scales: Mapping[str, float]
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Replay:
    """A file of `save_replay`, read: the tensors of `NETWORKS` by their names."""

    moment: Moment
    batch: Batch
    networks: Mapping[str, Mapping[str, Tensor]]


def stopped(run: "StageRun", local: int, values: Tensor) -> KDError:
    """Keep a step that was not finite; the error names the process and the terms at fault.

    No step after it changed the weights. All processes call it.

    Args:
        run: the stage.
        local: the step, of the stage.
        values: float32 [1 + terms], its loss and terms.
    """
    setting, step = run.setting, run.before + local + 1
    names, place = ("loss", *run.trainable.names), setting.processes
    parts = place.gather(values.cpu())
    everyone = [dict(zip(names, part.tolist(), strict=True)) for part in parts]
    run.weights.set(local, run.total)
    moment = Moment(
        step=step,
        stage=run.plan.name,
        seed=run.seed_of(local),
        bf16=setting.bf16,
        quantised=is_quantised(setting),
        weights=run.weights.shown(),
        scales=run.objective.scales(),
        terms=everyone[place.rank],
    )
    networks = {"student": setting.student.state_dict(), "recipe": run.recipe.state_dict()}
    if setting.first is not None:
        networks["first"] = setting.first.state_dict()
    save_replay(setting.work, place, moment, run.batch(local), networks)
    place.barrier()  # the error may name the file of another process
    guilty = next((n for n, terms in enumerate(everyone) if not_finite(terms)), place.rank)
    return nonfinite(step, everyone[guilty], replay_path(setting.work, place, step, guilty))


def save_replay(
    work: Path,
    processes: Processes,
    moment: Moment,
    batch: Batch,
    networks: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    """Write `replay-STEP.safetensors`: the parts of `BATCH`, and the state of each network.

    Its metadata has the moment as JSON under `moment`. Of several processes each has a file.
    """
    path = replay_path(work, processes, moment.step, processes.rank)
    tensors = {name: getattr(batch, name) for name in BATCH}
    tensors |= {} if batch.inside is None else {INSIDE: batch.inside}
    for name, state in networks.items():
        tensors |= {f"{name}.{key}": value for key, value in state.items()}
    write_weights(path, tensors, {RECORD: json.dumps(asdict(moment))})
    return path


def replay_path(work: Path, processes: Processes, step: int, rank: int) -> Path:
    """The file of a step and process."""
    suffix = "" if processes.is_alone else f"-rank{rank}"
    return work / f"replay-{step}{suffix}.safetensors"


def read_replay(path: Path) -> Replay:
    """What `save_replay` wrote.

    Raises:
        KDError: `replay-unreadable`, or those of `read_weights`.
    """
    tensors, metadata = read_weights(path)
    try:
        moment = Moment(**parse_json(metadata[RECORD], finite=False))
        images, target, photo = (tensors.pop(name) for name in BATCH)
        batch = Batch(images, target, photo, tensors.pop(INSIDE, None))
    except (KeyError, TypeError, ValueError) as error:
        raise KDError(
            "replay-unreadable",
            "this is no batch that a training has kept",
            where=str(path),
            fix="name the replay-STEP.safetensors that error[loss-nonfinite] named",
        ) from error
    networks: dict[str, dict[str, Tensor]] = {name: {} for name in NETWORKS}
    for key, value in tensors.items():
        owner, _, name = key.partition(".")
        networks.setdefault(owner, {})[name] = value
    return Replay(moment, batch, networks)


def not_finite(terms: Mapping[str, float]) -> list[str]:
    """The terms that are NaN or infinite."""
    return [name for name, value in terms.items() if not math.isfinite(value)]


def nonfinite(step: int, terms: Mapping[str, float], kept: Path) -> KDError:
    """The error that names the step, the terms at fault and where the batch lies."""
    bad = not_finite(terms)
    at_fault = f"{' and '.join(bad)} not finite" if bad else "the gradient is not finite"
    shown = ", ".join(f"{name} = {value:.4g}" for name, value in terms.items())
    return KDError(
        "loss-nonfinite",
        f"step {step}: {at_fault} ({shown})",
        where=f"batch and weights kept in {kept}",
        fix=f"kdcompile distill --replay {shlex.quote(str(kept))} with the same spec names the "
        "tensor; lower distill.lr, or the weight of the term that overflows",
    )


def plain(value: float) -> Any:
    """A number as JSON has it: NaN and infinity in words."""
    return value if math.isfinite(value) else str(value)
