"""The training loop: stages one after the other, resumable at any step.

Everything random comes from (seed, step), so a run that is stopped and resumed is the run that
was not stopped, bit for bit on a CPU. Between two rows of the curve nothing waits for the device.
"""

import copy
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.distributed import Processes, processes
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.distill.evaluate import peek, predict
from kdcompile.distill.findings import findings
from kdcompile.distill.going_back import go_back, is_spoilt, rate_of, returns_finding
from kdcompile.distill.output_calibration import OutputCalibration, calibrate_output
from kdcompile.distill.phase import StageRun
from kdcompile.distill.qad import Qad, known_mode, mean_seconds
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.replay import stopped
from kdcompile.distill.schedule import (
    StagePlan,
    evaluation_steps,
    seconds_per_step,
    stage_plans,
    stage_steps,
)
from kdcompile.distill.state import (
    Row,
    State,
    TrainingProgress,
    load_checkpoint,
    read_lengths,
    save_checkpoint,
)
from kdcompile.distill.training_context import make_training_context
from kdcompile.distill.unlabelled import pool_crops
from kdcompile.tasks.task import Floats, task_of

log = logging.getLogger("kdcompile")
LOG_EVERY = 20
CHECKPOINT_SECONDS = 30.0
NO_STEP = -1


class Trainer:
    """Distils `teacher` into `student` as the spec says.

    Args:
        spec: its sections seed, task, data, distill and export.
        teacher: frozen and, on a GPU, brought to bfloat16.
        student: as it starts.
        train, val: photos.
        work: a folder that outlives an interruption.
        teacher_value: the teacher's validation metric, if known.
        on_validated: called after each validation with finished steps, seconds of training so
            far, and the moving average.
        store: the training photos where they are decoded already.
        pool: photos without labels.
    """

    def __init__(
        self,
        spec: Spec,
        teacher: nn.Module,
        student: nn.Module,
        train: Sequence[Photo],
        val: Sequence[Photo],
        work: Path,
        teacher_value: float | None = None,
        on_validated: Callable[[int, float, nn.Module], None] | None = None,
        store: ImageStore | None = None,
        pool: Sequence[Photo] = (),
    ) -> None:
        self._spec, self._options, self._work = spec, spec.distill, work
        self._train, self._val, self._teacher_value = train, val, teacher_value
        self._on_validated = on_validated
        self._task = task_of(spec)
        self._processes = processes()
        self.setting = make_training_context(spec, teacher, student, train, work, store, pool)
        self.device = self.setting.device
        self.student = self.setting.student
        self._plans = stage_plans(self._options)
        self._state = State()
        self._kept = load_checkpoint(work, self.device)
        self._history: list[Tensor] = []
        self.is_quiet = False  # of a training that is told of by who asked for it
        self.qad: Qad | None = None  # known once the length is
        self._now = np.zeros(0)  # what the last validation predicted
        self._of_training = np.zeros(0)  # what the best student predicts of training photos
        self._resume()

    def run(self) -> State:
        """Train to the end; the state holds the best validated weights and the metrics.

        Raises:
            KDError: `loss-nonfinite`, `student-nonfinite`, `execution-failed` or `rank-lost`.
        """
        lengths = self._lengths()
        total = sum(lengths)
        if self.setting.layers:
            self.qad = Qad(self.setting, total, self._state.step)
        if self._state.step == 0 and not self._state.metrics:
            self._check_later()
            self._first_row(lengths)
        self._saved = time.perf_counter()
        self._began = time.perf_counter() - self._state.seconds
        validate_at = evaluation_steps(total, self._options.evaluations)
        with TrainingProgress(
            total,
            self._state.step,
            self._task.metric.name,
            quiet=self.is_quiet or not self._processes.is_main,
        ) as progress:
            before = 0
            for number, (plan, length) in enumerate(zip(self._plans, lengths, strict=True)):
                if self._state.step < before + length:
                    self._train_stage(number, plan, length, before, validate_at, progress)
                before += length
        if not self._state.best:
            raise KDError(
                "student-nonfinite",
                "the student's validation predictions were never numbers",
                where="[distill]",
                fix="lower distill.lr",
            )
        return self._state

    def _check_later(self) -> None:
        """Refuse a stage that cannot be, such as one of wrong taps, before those ahead of it."""
        alone = replace(self.setting, processes=Processes())
        for number, plan in enumerate(self._plans[1:], 1):
            one = replace(plan, options=plan.options.model_copy(update={"batch": 1}))
            StageRun(alone, one, number, 1).release()

    def _train_stage(
        self,
        number: int,
        plan: StagePlan,
        length: int,
        before: int,
        validate_at: set[int],
        progress: TrainingProgress,
    ) -> None:
        run = self._enter(number, plan, length, before)
        ends, total = before + length, sum(self._planned_lengths)
        self._clock = (time.perf_counter(), self._state.step)
        for step in range(self._state.step - before, length):
            if self.qad is not None:
                self.qad.before(run, before + step, self._state)
            run.step(step)
            self._history.append(run.values.clone())
            done = self._state.step = before + step + 1
            validating = done in validate_at
            self._state.seconds = time.perf_counter() - self._began
            if validating or done % LOG_EVERY == 0 or done in (1, ends):
                row = self._row(run, done)
                if validating:
                    row |= self._validate(done)
                    if done < total:
                        self._go_back_if_spoilt(run, row[f"val_{self._task.metric.name}"])
                self._state.metrics.append(row)
                progress.show_row(done, row)
                self._clock = (time.perf_counter(), done)
            if time.perf_counter() - self._saved > CHECKPOINT_SECONDS or done == ends:
                self._save(number, run)
        run.release()
        del run
        gc.collect()  # a captured graph holds its memory until its stage is gone

    def _enter(self, number: int, plan: StagePlan, length: int, before: int) -> StageRun:
        """The stage, its checkpoint loaded where it was left, and ready to run."""
        run = StageRun(self.setting, plan, number, length, before)
        run.rate = rate_of(self._state)
        kept, self._kept = self._kept, None
        if kept is not None and kept["stage"] == number:
            run.load_state_dict(kept["run"])
        run.start(known_mode(self._state.stages.get(plan.name)))
        self._state.stages.setdefault(plan.name, run.describe())
        if run.cache_note and plan.options.views:
            log.info("distill: teacher outputs are not cached: %s", run.cache_note)
        return run

    def _row(self, run: StageRun, done: int) -> Row:
        """Means since the last row; here the host waits for the device.

        Raises:
            KDError: `loss-nonfinite`, with the step at fault.
        """
        values = torch.stack(self._history)
        first_bad = int(run.update.first_bad)
        if first_bad != NO_STEP:
            raise stopped(run, first_bad, self._history[first_bad + run.before - done])
        mean = self._processes.mean(values.double().mean(0).cpu()).tolist()
        self._history = []
        since, at = self._clock
        ms = (time.perf_counter() - since) / max(1, done - at) * 1e3
        row: Row = {"step": done, "loss": mean[0], "ms": ms, "stage": run.plan.name}
        row["terms"] = dict(zip(run.trainable.names, mean[1:], strict=True))
        row["weights"] = run.weights.shown()
        return row | {"lr": run.learning_rate(done - 1 - run.before)}

    def _scored(self, photos: Sequence[Photo]) -> tuple[dict[str, float], Floats]:
        """The moving average's metrics by name, and its predictions."""
        network, prepare = self.setting.ema, self.setting.preprocess
        found = predict(network, photos, prepare, self.device, self._task, self._processes)
        return self._task.scores(found, [self._task.truth(photo) for photo in photos]), found

    def _validate(self, done: int) -> Row:
        scores, found = self._scored(self._val)
        self._now = found
        value, state = scores[self._task.metric.name], self._state
        if self._on_validated is not None:
            self._on_validated(done, state.seconds, self.setting.ema)
        if self._task.metric.is_better(value, state.value):
            state.value, state.scores, state.best_step, state.predicted = value, scores, done, found
            state.best = _copied(self.setting.ema)
        return {f"val_{name}": score for name, score in scores.items()}

    def _go_back_if_spoilt(self, run: StageRun, value: float) -> None:
        """Undo what made the student worse than its start; not of one with quantised modules.

        Args:
            run: the stage.
            value: the metric of the last validation.
        """
        state, true = self._state, [self._task.truth(photo) for photo in self._val]
        if self.qad is not None or not state.best:
            return
        if is_spoilt(self._task, state.initial, self._now, true, self._spec.seed):
            go_back(run, state, (self.student, self.setting.ema), value)
            log.info(
                "distill: %s %.4g is worse than the start; back to the best weights, the rate is "
                "%g of distill.lr now", self._task.metric.name, value, run.rate,
            )  # fmt: skip

    def _first_row(self, lengths: Sequence[int]) -> None:
        """The student's validation before the first step."""
        row = {"step": 0, **self._validate(0)}
        self._state.initial = self._state.predicted
        self._state.metrics.append(row)
        if self.is_quiet:
            return
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        log.info("distill: before the first step %s", shown)
        log.info("distill: %s steps", " + ".join(map(str, lengths)))

    @property
    def recipe(self) -> str:
        """The name of the recipe of the stages that name none of their own."""
        return self._options.recipe

    @property
    def last_predicted(self) -> Floats:
        """What the moving average predicted of the validation photos when last validated."""
        return self._now

    @torch.no_grad()
    def output_shape(self) -> tuple[int, ...]:
        """The shape of what the student answers to one crop."""
        example = self.setting.example(self._options.crop).float()  # as the student is
        return tuple(peek(self.student, example).shape)

    def planned_steps(self) -> int:
        """The length of the training, decided once and kept; `minutes` are timed for it."""
        return sum(self._lengths())

    @property
    def n_unlabelled(self) -> int:
        """How many photos without labels a stage has drawn from, or is to."""
        kinds = [find_recipe(plan.options.recipe) for plan in self._plans]
        drawn = zip(kinds, self._plans, strict=True)
        used = any(kind.learns_unlabelled() and pool_crops(plan.options) for kind, plan in drawn)
        return len(self.setting.pool) if used and self.setting.pool is not None else 0

    def conclude(self) -> tuple[float, list[str]]:
        """After `run`: the best student's metric on training photos, and what to warn of.

        It looks at as many training photos as there are validation ones. All processes call it.
        """
        state, metric = self._state, self._task.metric
        self.setting.ema.load_state_dict(state.best)
        scores, self._of_training = self._scored(evenly(self._train, len(self._val)))
        train = scores[metric.name]
        found = findings(metric, state.metrics, state.value, self._teacher_value, train)
        first = state.metrics[0][f"val_{metric.name}"]
        found += returns_finding(metric.name, state.returns, first, self._options.lr)
        batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in self.student.modules())
        if batch_norm and not self._processes.is_alone and self.device.type == "cpu":
            found.append("batch-norm statistics are of each process's own batch on a CPU")
        return train, found

    def calibrate_output(self) -> OutputCalibration | None:
        """After `conclude`: scale the best student's output where that pays.

        Only the first process may call it. A student that was trained with the scales of its
        quantisation keeps its output, as its last layer has one of them.
        """
        state, network, val = self._state, self.setting.ema, self._val
        if self.qad is not None or not self._options.calibrate_output:
            return None
        found = calibrate_output(
            network, self._train, val, self.setting.preprocess, self.device, self._task,
            (self._of_training, state.predicted),
        )  # fmt: skip
        if found is not None and found.kept:
            state.best = _copied(network)
            state.predicted = predict(
                network, val, self.setting.preprocess, self.device, self._task
            )
            state.scores = self._task.scores(
                state.predicted, [self._task.truth(photo) for photo in val]
            )
        return found

    def _lengths(self) -> list[int]:
        """The planned steps of each stage, decided once and kept next to the checkpoint."""
        kept = self._work / "steps.json"
        if self._processes.is_main and read_lengths(kept) is None:
            photos, world = len(self._train), self._processes.world
            known = self._kept["lengths"] if self._kept else None
            steps = known or stage_steps(self._plans, self._options, photos, world, self._seconds)
            write_text(kept, json.dumps(steps))
        self._processes.barrier()
        self._planned_lengths = list(json.loads(kept.read_text()))
        return self._planned_lengths

    def _seconds(self, plan: StagePlan) -> float:
        """Time some steps of a stage, and undo them."""
        alone = replace(self.setting, processes=Processes())
        networks = (alone.student, alone.ema)
        before = [copy.deepcopy(network.state_dict()) for network in networks]
        run = StageRun(alone, plan, 0, 1)
        run.start(None)

        def timed_step() -> None:
            run.step(0)
            float(run.values[0])

        try:
            return mean_seconds(run, lambda: seconds_per_step(timed_step))
        finally:
            run.release()
            for network, state in zip(networks, before, strict=True):
                network.load_state_dict(state)

    def _save(self, number: int, run: StageRun) -> None:
        self._saved = time.perf_counter()
        self._state.seconds = self._saved - self._began
        if not self._processes.is_main or int(run.update.first_bad) != NO_STEP:
            return  # the next row stops for a bad step, and nothing is to go on from after it
        parts = {
            "stage": number,
            "student": self.student.state_dict(),
            "ema": self.setting.ema.state_dict(),
            "run": run.state_dict(),
            "history": self._history,
            "lengths": self._planned_lengths,
        }
        save_checkpoint(self._work, self._state, parts)

    def _resume(self) -> None:
        if (kept := self._kept) is None:
            return
        self.student.load_state_dict(kept["student"])
        self.setting.ema.load_state_dict(kept["ema"])
        self._history = list(kept["history"])
        self._state = State(**kept["state"])
        log.info("distill: resumed after step %d", self._state.step)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights as files have them."""
    own = network.state_dict()
    return {name: value.detach().cpu().contiguous().clone() for name, value in own.items()}
