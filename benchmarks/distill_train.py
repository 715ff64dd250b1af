"""Train one arm of the distillation benchmark, resumably, and judge it."""

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distill_arms import Arm, Source, card, changed, claim, with_steps
from distill_files import Results
from reference_networks import count
from safetensors.torch import load_file, save_file
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.core.files import write_json, write_text
from kdcompile.data.photo import Photo
from kdcompile.distill import train as training
from kdcompile.distill.evaluate import predict
from kdcompile.distill.execution import undone
from kdcompile.distill.phase import StageRun
from kdcompile.distill.schedule import stage_plans
from kdcompile.distill.state import State
from kdcompile.distill.train import Trainer
from kdcompile.distill.training_context import training_device
from kdcompile.kernels import ran
from kdcompile.tasks.task import preprocess_of, task_of

WARM, TIMED = 3, 24
MOST_VALIDATING = 0.5  # of an arm's time; a short one is validated less often
PRICED = (1, 3, 576, 864)


class OutOfTimeError(Exception):
    """The minutes of this call are over; everything is kept."""


class Clock:
    """The minutes that this call may take; None for any."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + minutes * 60

    def is_over(self, ahead_s: float = 0.0) -> bool:
        """Whether they are over in so many seconds."""
        return self._end is not None and time.monotonic() + ahead_s >= self._end


class Stoppable(Trainer):
    """A trainer that stops where it saves a checkpoint and would not come to the next in time."""

    clock = Clock(None)

    def _save(self, number: int, run: StageRun) -> None:
        super()._save(number, run)
        if self.clock.is_over(training.CHECKPOINT_SECONDS):
            raise OutOfTimeError


@dataclass(frozen=True)
class Timing:
    """What a stage costs here: seconds to prepare it and seconds a step."""

    setup_s: float
    step_s: float


class Judge:
    """Every metric of a network on some photos, and its error on each."""

    def __init__(self, source: Source) -> None:
        self._spec = source.spec(0)
        self._preprocess = preprocess_of(self._spec)
        self._task = task_of(self._spec)

    def __call__(
        self, network: nn.Module, photos: Sequence[Photo]
    ) -> tuple[dict[str, float], list[float]]:
        """The metrics by name, and the absolute errors in the order of the photos."""
        device = training_device()
        found = predict(network.to(device), photos, self._preprocess, device, self._task)
        true = [self._task.truth(photo) for photo in photos]
        errors = [round(abs(float(e)), 3) for e in self._task.errors(found, true)]
        return self._task.scores(found, true), errors


def run_arm(
    arm: Arm, source: Source, results: Results, clock: Clock, provenance: Mapping[str, Any]
) -> None:
    """Train an arm to its end, judge it, and keep what it gave.

    Raises:
        OutOfTimeError: the work folder has all of it so far.
    """
    folder = source.work / arm.slug
    claim(folder, arm, source)
    fresh()
    planned = plan(arm, source, folder)
    trainer = make_trainer(arm, planned, source, folder)
    trainer.clock = clock
    state = trainer.run()
    judged = _judged(trainer, state, source, folder, clock)
    record = _record(arm, trainer, state, judged, folder) | dict(provenance)
    row = {
        "arm": arm.name, "seed": arm.seed, "steps": state.step, "minutes": state.seconds / 60,
        "steps_per_s": record["steps_per_s"], "val_mae": state.scores["mae"],
        "test_mae": judged["best"]["test"]["mae"], "card": card(),
    }  # fmt: skip
    report = {**row, **_sizes(trainer.student), "best_step": state.best_step, **provenance}
    report |= {"val_rmse": state.scores["rmse"], "test_rmse": judged["best"]["test"]["rmse"]}
    if results.offer(state.best, source.architecture(arm.seed), report):
        print(f"{arm.name}, seed {arm.seed}: the best student so far by validation")
    results.add(row, record)
    lines = "".join(json.dumps(one) + "\n" for one in state.metrics)
    write_text(source.work / f"{arm.slug}.jsonl", lines)
    shutil.rmtree(folder)


def fresh() -> None:
    """No compiled code and no memory of the arm before: the ninth shape would run eagerly."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_trainer(arm: Arm, distill: Distill, source: Source, folder: Path) -> Stoppable:
    """The trainer of an arm, resumed where it was left."""
    spec = source.spec(arm.seed).model_copy(update={"distill": distill})
    student = source.student(arm.seed, arm.start)
    splits = source.splits
    folder.mkdir(exist_ok=True)
    keep = _keeper(folder, arm.curve)
    return Stoppable(
        spec, source.teacher(), student, splits.train, splits.val, folder, on_validated=keep
    )


def plan(arm: Arm, source: Source, folder: Path) -> Distill:
    """`[distill]` with its steps, which follow from an arm's time once and are then kept."""
    if arm.seconds is None:
        return arm.distill
    kept = folder / "plan.json"
    if not kept.is_file():
        stages, validation_s = timings(arm, source, folder / "timing")
        shares = [stage.share or 0.0 for stage in arm.distill.stages]
        # what prepares a stage is no training, however short that is
        fits = int(MOST_VALIDATING * arm.seconds / max(validation_s, 1e-9)) - 1
        evaluations = max(1, min(arm.distill.evaluations, fits))
        free = max(arm.seconds - validation_s * (evaluations + 1), MOST_VALIDATING * arm.seconds)
        steps = [
            max(1, int(share * free / t.step_s)) for share, t in zip(shares, stages, strict=True)
        ]
        told = {"stages": [asdict(t) for t in stages], "validation_s": validation_s}
        write_json(kept, {**told, "steps": steps, "evaluations": evaluations})
        fresh()
    known = json.loads(kept.read_text())
    rarer = changed(arm.distill, evaluations=known["evaluations"])
    return with_steps(rarer, known["steps"])


def timings(arm: Arm, source: Source, folder: Path) -> tuple[list[Timing], float]:
    """What each stage of an arm costs, and seconds of a validation."""
    trainer = make_trainer(arm, arm.distill, source, folder)
    found = []
    for number, stage in enumerate(stage_plans(arm.distill)):
        begun = time.perf_counter()
        run = StageRun(trainer.setting, stage, number, WARM + TIMED)
        run.start(None)
        setup_s = time.perf_counter() - begun
        seconds = undone(run, partial(steps_s, run, range(WARM), range(WARM, WARM + TIMED)))
        found.append(Timing(setup_s, seconds / TIMED))
        run.release()
        del run
        fresh()  # a captured graph keeps its memory as long as it lives
    judge = Judge(source)
    for _ in range(2):  # the first one warms up
        begun = time.perf_counter()
        judge(trainer.setting.ema, source.splits.val)
        validation_s = time.perf_counter() - begun
    shutil.rmtree(folder)
    return found, validation_s


def steps_s(run: StageRun, warm: range, timed: range) -> float:
    """Seconds of some steps after others, as the training loop runs them."""
    for step in warm:
        run.step(step)
    float(run.values[0])
    begun = time.perf_counter()
    for step in timed:
        run.step(step)
    float(run.values[0])  # waits for the device
    return time.perf_counter() - begun


def _keeper(folder: Path, curve: bool) -> Callable[[int, float, nn.Module], None]:
    """Notes when each validation was; keeps its weights, half precision, where they are judged."""

    def keep(step: int, seconds: float, network: nn.Module) -> None:
        times = folder / "times.json"
        known = json.loads(times.read_text()) if times.is_file() else {}
        write_json(times, known | {str(step): seconds})
        if curve:
            state = {n: t.cpu().contiguous() for n, t in network.state_dict().items()}
            halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
            save_file(halves, folder / f"validated-{step:06d}.safetensors")

    return keep


def _judged(
    trainer: Stoppable, state: State, source: Source, folder: Path, clock: Clock
) -> dict[str, Any]:
    """The selected student on the test split, and then every validated one for the curve."""
    path = folder / "judged.json"
    found = json.loads(path.read_text()) if path.is_file() else {"curve": {}}
    judge, network, photos = Judge(source), trainer.setting.ema, source.splits.test
    if "best" not in found:
        network.load_state_dict(state.best)
        scores, errors = judge(network, photos)
        found["best"] = {"test": scores, "errors": errors}
        found["curve"][str(state.best_step)] = scores["mae"]
        write_json(path, found)
    for snapshot in sorted(folder.glob("validated-*.safetensors")):
        step = snapshot.stem.removeprefix("validated-").lstrip("0") or "0"
        if step not in found["curve"]:
            if clock.is_over():
                raise OutOfTimeError
            network.load_state_dict(load_file(snapshot))
            found["curve"][step] = judge(network, photos)[0]["mae"]
            write_json(path, found)
        snapshot.unlink()
    return found


def _record(
    arm: Arm, trainer: Stoppable, state: State, judged: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """The details of a finished arm."""
    times = json.loads((folder / "times.json").read_text())
    curve = [
        {"step": row["step"], "minutes": times[str(row["step"])] / 60, "val_mae": row["val_mae"]}
        | ({"test_mae": test} if (test := judged["curve"].get(str(row["step"]))) else {})
        for row in state.metrics
        if "val_mae" in row
    ]
    kept = folder / "plan.json"
    planned = json.loads(kept.read_text()) if kept.is_file() else None
    rate = stepping_rate(state)
    judging_s = planned["validation_s"] * (planned["evaluations"] + 1) if planned else 0.0
    train_mae, warnings = trainer.conclude()
    return {
        "start": arm.start,
        "val": state.scores,
        "test": judged["best"]["test"],
        "test_errors": judged["best"]["errors"],
        "best_step": state.best_step,
        "seconds": state.seconds,
        "trained_s": state.step / rate + judging_s,  # without what prepared the stages
        "steps_per_s": rate,
        "curve": curve,
        "stages": state.stages,
        "plan": planned,
        "losses": ran(),
        "train_mae": train_mae,
        "warnings": warnings,
    }


def stepping_rate(state: State) -> float:
    """Steps a second of the training loop, without validation and without compiling."""
    rows = [row for row in state.metrics if "ms" in row]
    before = [0, *(row["step"] for row in rows)]
    ms = sum(row["ms"] * (row["step"] - b) for row, b in zip(rows, before, strict=False))
    return float(1e3 * state.step / ms)


def _sizes(student: nn.Module) -> dict[str, Any]:
    """Parameters, and MACs at the size that students are compared at."""
    channels = next(iter(student.parameters())).shape[1]
    shape = (1, channels, *PRICED[2:])
    found = count(student, shape)
    return {"params": found.params, "macs": found.macs, "macs_shape": list(shape)}
