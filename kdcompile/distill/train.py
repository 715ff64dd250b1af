"""The training loop: one student, one recipe, resumable at any step.

Everything random comes from (seed, step), so a run that is stopped and resumed is the run that
was not stopped, bit for bit on a CPU.
"""

import copy
import json
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.artifact import write_text
from kdcompile.data.augment import CropSampler
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.distill.counting import label_scales, mae_rmse
from kdcompile.distill.evaluate import predict
from kdcompile.distill.progress import Progress
from kdcompile.distill.recipe import LossInputs, Recipe, find_recipe
from kdcompile.distill.schedule import evaluation_steps, learning_rate, total_steps
from kdcompile.distill.taps import Tap, captured, resolve_taps
from kdcompile.errors import KDError
from kdcompile.spec import Spec

log = logging.getLogger("kdcompile")
LOG_EVERY = 20
CHECKPOINT_SECONDS = 30.0
SCALE_BATCHES = 8


@dataclass
class State:
    """What a checkpoint holds beside the weights."""

    step: int = 0
    best_mae: float = float("inf")
    best_rmse: float = float("inf")
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Trainer:
    """Distils `teacher` into `student` as the spec says."""

    def __init__(
        self,
        spec: Spec,
        teacher: nn.Module,
        student: nn.Module,
        train: Sequence[Photo],
        val: Sequence[Photo],
        work: Path,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        fast = self.device.type == "cuda"
        self._bf16 = fast and torch.cuda.is_bf16_supported()
        self._format = torch.channels_last if fast else torch.contiguous_format
        self._spec, self._options, self._work = spec, spec.distill, work
        self._train, self._val = train, val
        self._preprocess = Preprocess.of(spec.data, spec.export)
        self._teacher = self._placed(teacher).requires_grad_(False).eval()
        self.student = self._placed(student)
        self._stride = self._output_stride()
        self._sampler = CropSampler(
            train,
            self._preprocess,
            self._options,
            self._stride,
            spec.data.sigma,
            spec.seed,
            self.device,
        )
        self._recipe, self.taps = self._make_recipe()
        self._ema = copy.deepcopy(self.student).requires_grad_(False).eval()
        self._optimizer = self._make_optimizer(self.student, self._recipe)
        self._state = State()
        self._resume()

    def run(self) -> State:
        """Train to the end; the state holds the best validated weights and the metrics.

        Raises:
            KDError: `loss-nonfinite` or `student-nonfinite`.
        """
        total = self._total_steps()
        validate_at = evaluation_steps(total, self._options.evaluations)
        started, saved = time.perf_counter() - self._state.seconds, time.perf_counter()
        with Progress(total, self._state.step) as progress:
            for step in range(self._state.step, total):
                begun = time.perf_counter()
                terms, lr = self._step(self.student, self._recipe, self._optimizer, step, total)
                self._average(step)
                done = self._state.step = step + 1
                validating = done in validate_at
                if validating or done % LOG_EVERY == 0 or done == 1:
                    row = self._row(done, terms, lr, begun)
                    if validating:
                        row |= self._validate(done)
                    self._state.metrics.append(row)
                    progress.show(done, row)
                self._state.seconds = time.perf_counter() - started
                if time.perf_counter() - saved > CHECKPOINT_SECONDS or done == total:
                    self._save()
                    saved = time.perf_counter()
        if not self._state.best:
            raise KDError(
                "student-nonfinite",
                "the student's validation counts were never a number",
                where="[distill]",
                fix="lower distill.lr",
            )
        return self._state

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.to(self.device).to(memory_format=self._format)  # type: ignore[call-overload, no-any-return]

    def _example(self) -> Tensor:
        side = self._options.crop
        return torch.zeros(1, self._preprocess.channels, side, side, device=self.device)

    def _output_stride(self) -> int:
        with torch.no_grad():
            height = self._teacher(self._example()).shape[2]
            student_shape = self.student.eval()(self._example()).shape
        stride, rest = divmod(self._options.crop, height)
        if rest:
            raise KDError(
                "crop-stride",
                f"a crop of {self._options.crop} gives {height} cells, not a whole stride",
                where="[distill] crop",
                fix=f"use a multiple of {stride + 1}",
            )
        if student_shape[1:] != (1, height, height):
            raise KDError(
                "student-output",
                f"the student gives {tuple(student_shape)}, the teacher 1 x {height} x {height}",
                where="[student] family",
                fix="give the student the teacher's output stride and one channel",
            )
        return int(stride)

    def _make_recipe(self) -> tuple[Recipe, list[Tap]]:
        kind = find_recipe(self._options.recipe)
        taps = (
            resolve_taps(self._teacher, self.student, self._example(), self._options.taps)
            if kind.needs_taps
            else []
        )
        maps = torch.cat([self._sampler.batch(step).density for step in range(SCALE_BATCHES)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._spec.seed)
            recipe = kind(taps, self._options, label_scales(maps))
        return recipe.to(self.device), taps

    def _make_optimizer(self, student: nn.Module, recipe: nn.Module) -> torch.optim.Optimizer:
        parameters = [*student.parameters(), *recipe.parameters()]
        return torch.optim.AdamW(
            parameters, lr=self._options.lr, weight_decay=self._options.weight_decay
        )

    def _step(
        self,
        student: nn.Module,
        recipe: Recipe,
        optimizer: torch.optim.Optimizer,
        step: int,
        total: int,
    ) -> tuple[dict[str, Tensor], float]:
        """One update; returns the loss with its terms, still on the device."""
        batch = self._sampler.batch(step)
        images = batch.images.to(memory_format=self._format)
        names_t, names_s = [t.teacher for t in self.taps], [t.student for t in self.taps]
        half = torch.autocast("cuda", torch.bfloat16) if self._bf16 else nullcontext()
        student.train()
        with half:
            with torch.no_grad(), captured(self._teacher, names_t) as of_teacher:
                from_teacher = self._teacher(images) if recipe.needs_teacher else None
            with captured(student, names_s) as of_student:
                output = student(images)
            inputs = LossInputs(
                output,
                batch.density,
                from_teacher,
                [of_student[n] for n in names_s],
                [of_teacher[n] for n in names_t],
            )
        loss, terms = recipe(inputs)
        lr = learning_rate(step, total, self._options)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self._options.clip)
        optimizer.step()
        return {"loss": loss.detach()} | {n: t.detach() for n, t in terms.items()}, lr

    def _average(self, step: int) -> None:
        """Exponential moving average whose memory grows with the steps taken so far."""
        decay = min(self._options.ema, (1 + step) / (10 + step))
        own, average = self.student.state_dict(), self._ema.state_dict()
        for name, value in average.items():
            if value.is_floating_point():
                value.lerp_(own[name], 1 - decay)
            else:
                value.copy_(own[name])

    def _row(self, done: int, terms: dict[str, Tensor], lr: float, begun: float) -> dict[str, Any]:
        values = {name: float(value) for name, value in terms.items()}
        if not all(torch.isfinite(value) for value in terms.values()):
            raise KDError(
                "loss-nonfinite",
                f"step {done}: " + ", ".join(f"{n} = {v:.4g}" for n, v in values.items()),
                where="[distill]",
                fix="lower distill.lr, or the weight of the term that overflows",
            )
        loss = values.pop("loss")
        milliseconds = (time.perf_counter() - begun) * 1e3
        return {"step": done, "loss": loss, "terms": values, "lr": lr, "ms": milliseconds}

    def _validate(self, done: int) -> dict[str, float]:
        true = [float(photo.count) for photo in self._val]
        predicted = predict(self._ema, self._val, self._preprocess, self.device)
        mae, rmse = mae_rmse(predicted, true)
        state = self._state
        if mae < state.best_mae:
            state.best_mae, state.best_rmse, state.best_step = mae, rmse, done
            state.best = {
                n: v.detach().cpu().contiguous().clone() for n, v in self._ema.state_dict().items()
            }
        return {"val_mae": mae, "val_rmse": rmse}

    def _total_steps(self) -> int:
        """The planned steps, decided once and kept beside the checkpoint."""
        kept = self._work / "steps.json"
        if kept.is_file():
            return int(json.loads(kept.read_text()))
        student, recipe = copy.deepcopy((self.student, self._recipe))
        optimizer = self._make_optimizer(student, recipe)

        def timed_step() -> None:
            terms, _ = self._step(student, recipe, optimizer, 0, 1000)
            float(terms["loss"])

        total = total_steps(self._options, len(self._train), timed_step)
        write_text(kept, json.dumps(total))
        return total

    def _save(self) -> None:
        path = self._work / "checkpoint.pt"
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "student": self.student.state_dict(),
                "ema": self._ema.state_dict(),
                "recipe": self._recipe.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "state": vars(self._state),
            },
            temporary,
        )
        temporary.replace(path)

    def _resume(self) -> None:
        path = self._work / "checkpoint.pt"
        if not path.is_file():
            return
        kept = torch.load(path, map_location=self.device, weights_only=True)
        self.student.load_state_dict(kept["student"])
        self._ema.load_state_dict(kept["ema"])
        self._recipe.load_state_dict(kept["recipe"])
        self._optimizer.load_state_dict(kept["optimizer"])
        self._state = State(**kept["state"])
        log.info("distill: resumed after step %d", self._state.step)
