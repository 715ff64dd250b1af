"""One stage of a training, ready to step: crops, taps, recipe, weights, optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.data.augment import Batch, CropSampler
from kdcompile.data.rows import sampler_of
from kdcompile.distill.execution import Execution, Mode, prepare
from kdcompile.distill.objective import Objective, make_objective, objective_of
from kdcompile.distill.pool_feed import make_pool_feed, viewed
from kdcompile.distill.qad_modules import trained
from kdcompile.distill.recipe import Recipe, RecipeContext
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.schedule import StagePlan, TermWeights, gradient_norms, learning_rate
from kdcompile.distill.tap_pairs import find_taps
from kdcompile.distill.taps import Tap, Tapped
from kdcompile.distill.teacher_cache import (
    TeacherCache,
    cache_problem,
    make_cache,
    network_digest,
)
from kdcompile.distill.training_context import TrainingContext
from kdcompile.distill.update import Seen, Trainable, Update, fit_crops, in_training
from kdcompile.tasks.task import task_of

SCALE_BATCHES = 8
SEED_STRIDE = 1_000_003
PLAIN = {"scale": (1.0, 1.0), "flip": False, "colour": 0.0, "views": 1}  # crops as they are


class StageRun:
    """A stage from its first step to its last; `release` gives the student back without hooks.

    Args:
        setting: shared by the stages.
        plan: this stage.
        number: its place among them, which gives its crops other random numbers.
        total: its steps.
        before: steps of the stages before it.
    """

    def __init__(
        self, setting: TrainingContext, plan: StagePlan, number: int, total: int, before: int = 0
    ) -> None:
        self.setting, self.plan, self.total, self.before = setting, plan, total, before
        self.device, options = setting.device, plan.options
        self._number, self._seed = number, setting.spec.seed + SEED_STRIDE * number
        spec = setting.spec
        self._targets = objective_of(task_of(spec), options).targets(
            setting.photos, setting.stride, spec.data.sigma, self.device
        )
        place = (setting.processes.rank, setting.processes.world)
        kind = find_recipe(options.recipe)
        self.pool = make_pool_feed(setting, kind, options, self._seed, place)
        labelled = options.batch - (0 if self.pool is None else self.pool.crops)
        own = options.model_copy(update={"batch": labelled})
        self.sampler = self._make_sampler(own, place)
        self.objective = self._make_objective()
        self.taps: list[Tap] = find_taps(setting, options) if kind.needs_taps else []
        self._teacher = Tapped(
            setting.teacher,
            [tap.teacher for tap in self.taps],
            [tap.teacher_view for tap in self.taps],
        )
        self._look: Callable[[Tensor], tuple[Tensor, list[Tensor]]] = self._teacher
        self._context = self._make_context()
        with self._random_of_its_own():
            recipe = kind(self.taps, options, self.objective)
            recipe.prepare(self._context)
        student = Tapped(
            setting.student,
            [tap.student for tap in self.taps],
            [tap.student_view for tap in self.taps],
            blocks=plan.blocks,
        )
        self.trainable = Trainable(student, recipe.to(self.device))
        self._fit()
        self._plain = self._parallel()
        self._forward: Callable[..., Tensor] = self._plain
        self.cache: TeacherCache | None = None
        self.cache_note = cache_problem(kind, options)
        self._table = torch.empty_like(self.sampler.draw(0), device=self.device)
        self._index = torch.zeros(labelled, dtype=torch.int64, device=self.device)
        names = self.trainable.names
        self.weights = TermWeights(names, recipe.weights, options, self.device)
        self.update = Update(setting.student, recipe, setting.ema, options, setting.processes)
        self.values = torch.zeros(1 + len(names), device=self.device)
        self.execution = Execution("eager", why="not started")
        self._run: Callable[[], None] = self.body
        self._has_learnt = False
        self.rate = 1.0  # of the spec's

    @property
    def recipe(self) -> Recipe:
        """The recipe with its adapters."""
        return self.trainable.recipe

    @contextmanager
    def _random_of_its_own(self) -> Iterator[None]:
        """The same random numbers of torch at every start of this stage."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.spec.seed + self._number)
            yield

    def _make_context(self) -> RecipeContext:
        setting = self.setting
        return RecipeContext(
            setting.teacher, setting.student, setting.first, setting.others, len(setting.photos),
            self._make_sampler(self.plan.options.model_copy(update=PLAIN), (0, 1)).each_photo,
            self.look, setting.autocast, setting.processes,
        )  # fmt: skip

    def _make_sampler(self, options: Distill, place: tuple[int, int]) -> CropSampler:
        setting = self.setting
        sampler = sampler_of(setting.store)(
            setting.photos, setting.preprocess, options, self._targets, self._seed, self.device,
            shard=place, store=setting.store,
        )  # fmt: skip
        if setting.bf16:
            sampler.dtype = torch.bfloat16
        return sampler

    def _make_objective(self) -> Objective:
        """The task's losses, scaled by the first targets of all processes."""
        own = torch.cat([self.sampler.targets_of(step) for step in range(SCALE_BATCHES)])
        everyone = torch.cat(self.setting.processes.gather(own))
        task, photos = task_of(self.setting.spec), self.setting.photos
        return make_objective(task, self.plan.options, everyone, photos)

    @torch.no_grad()
    def _fit(self) -> None:
        """Let the recipe set its adapters on the first crops, and learn the names of its terms."""
        batch = self.shared_crops(fit_crops(self.plan.options.crop), 0)
        with self._random_of_its_own(), in_training(self.setting.student):
            with self.setting.autocast():
                inputs = self.trainable.inputs(batch.images, batch.target, self.see(batch))
            self.recipe.fit(inputs)
            self.trainable.names = tuple(self.recipe.terms(inputs))

    def shared_crops(self, number: int, step: int) -> Batch:
        """Crops of a step that are the same in every process and for every size of a batch."""
        few = self.plan.options.model_copy(update={"batch": number})
        return self._make_sampler(few, (0, 1)).batch(step)

    def _parallel(self) -> nn.Module:
        if self.setting.processes.is_alone:
            return self.trainable
        from torch.nn.parallel import DistributedDataParallel

        own = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.trainable, device_ids=own, find_unused_parameters=True)

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's output and maps."""
        output, maps = self._look(images.to(next(self.setting.teacher.parameters()).dtype))
        return output, maps

    def see(self, batch: Batch, known: tuple[Tensor, list[Tensor]] | None = None) -> Seen:
        """What frozen networks say of a batch; `known` is the teacher's view where there is one.

        Of a map, what they say of the photos alone: in the padding there is nothing to imitate.
        """
        images, needed = batch.images, self.recipe.needs_teacher
        output, maps = (known or self.look(images)) if needed else (None, [])
        with torch.no_grad():
            first = self.setting.first if self.recipe.needs_first else None
            others = self.setting.others if self.recipe.needs_others else ()
            return Seen(
                None if output is None else _of_photos(output, batch),
                maps,
                None if first is None else _of_photos(first(images), batch),
                [
                    _of_photos(each(images.to(next(each.parameters()).dtype)), batch)
                    for each in others
                ],
                batch.photo,
            )

    def start(self, known: Mode | None) -> None:
        """Let the recipe look at the photos, fill the cache and `choose`."""
        if not self._has_learnt:
            with self._random_of_its_own():
                self.recipe.learn(self._context)
            self._has_learnt = True
        if self.cache_note is None:
            seen = [(tap.teacher, tap.teacher_view) for tap in self.taps]
            room = self.plan.options.teacher_cache_mb * 10**6
            made = (
                self.total, self.plan.options.batch, room, self.setting.work,
                f"{network_digest(self.setting.teacher)} {seen}",
            )  # fmt: skip
            self.cache, self.cache_note = make_cache(self.look, self.sampler, *made)
            if self.pool is not None and self.cache is not None:
                self.cache_note = self.pool.fill(self.look, *made)
        self.choose(known)

    def choose(self, known: Mode | None) -> None:
        """Choose how a step runs, anew where the student has changed; its weights stay.

        Raises:
            KDError: `execution-failed`.
        """
        self.load(0)
        asked, alone = self.plan.options.execution, self.setting.processes.is_alone
        self._run, self.execution = prepare(self, asked, known, alone=alone)

    def load(self, step: int) -> None:
        """Send what a step needs to its static places; the copies are not waited for."""
        table = self.sampler.draw(step)
        if table.shape == self._table.shape:
            self._table.copy_(table, non_blocking=True)
        else:  # on a CPU, where nothing was captured, a table is as large as its windows
            self._table = table
        keys = self.sampler.keys(step)
        if self.cache is not None and keys is not None:
            self._index.copy_(self.cache.rows(keys), non_blocking=True)
        if self.pool is not None:
            self.pool.load(step)
        self.weights.set(step, self.total)
        self.update.set(step, self.learning_rate(step), self.before + step)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step of this stage."""
        return self.rate * learning_rate(step, self.total, self.plan.options)

    def step(self, step: int) -> None:
        """Run one step; its loss and terms are then in `values`, on the device."""
        torch.manual_seed(self.seed_of(step))
        if self.weights.is_due(step):
            self._balance(step)
            torch.manual_seed(self.seed_of(step))  # so that a replay draws what the step draws
        self.load(step)
        self._run()

    def seed_of(self, step: int) -> int:
        """The seed of torch's own random numbers (dropout) in a step of this process."""
        place = self.setting.spec.seed * SEED_STRIDE + self.before + step
        return place * self.setting.processes.world + self.setting.processes.rank

    def describe(self) -> dict[str, Any]:
        """How the stage runs, for the report."""
        size = None if self.cache is None else f"{self.cache.bytes / 1e6:.1f} MB"
        options = self.plan.options
        return {
            "steps": self.total,
            "recipe": options.recipe,
            "blocks": self.plan.blocks,
            "batch": options.batch * self.setting.processes.world,
            "crop": options.crop,
            "lr": options.lr,
            "taps": [[tap.teacher, tap.student] for tap in self.taps],
            "execution": self.execution.to_json(),
            "sampler": self.sampler.describe(),
            "unlabelled": None if self.pool is None else self.pool.describe(),
            "teacher_cache": size or f"none: {self.cache_note}",
        }

    def body(self) -> None:
        """One step on what `load` sent; device work only."""
        values = self._terms(self._rendered(), self._forward)
        loss = (self.weights.value * values).sum()
        self.update.apply(loss, values.detach())
        self.values[0].copy_(loss.detach())
        self.values[1:].copy_(values.detach())

    def batch(self, step: int) -> Batch:
        """What a step's crops are, those without labels last."""
        own = self.sampler.batch(step)
        return own if self.pool is None else own.beside(self.pool.batch(step))

    def _rendered(self) -> Batch:
        own = self.sampler.render(self._table)
        return own if self.pool is None else own.beside(self.pool.render())

    def _terms(self, batch: Batch, forward: Callable[..., Tensor]) -> Tensor:
        with self.setting.autocast():
            with torch.no_grad():
                batch = viewed(self.recipe, batch)
            known = None if self.cache is None else self.cache.read(self._index)
            if self.pool is not None:
                known = self.pool.known(known)
            seen = self.see(batch, known)
            return forward(batch.images, batch.target, seen)

    def _balance(self, step: int) -> None:
        """Measure the gradient of each term; waits for the device, but rarely."""
        self.load(step)
        values = self._terms(self._rendered(), self.trainable)
        parameters, _ = trained(self.setting.student)
        norms = gradient_norms(list(values), parameters, self.setting.processes.mean)
        self.weights.balance(norms, first=step == 0)

    def compile(self, on: bool) -> None:
        """Take compiled networks for the body, or the plain ones."""
        self._forward = torch.compile(self._plain, dynamic=False) if on else self._plain
        self._look = torch.compile(self._teacher, dynamic=False) if on else self._teacher

    def persistent(self) -> list[Tensor]:
        """Every tensor that a step changes and the next one reads."""
        setting = self.setting
        networks = (setting.student, setting.ema, self.recipe)
        own = [t for network in networks for t in network.state_dict(keep_vars=True).values()]
        return [*own, *self.update.tensors()]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside student and moving average."""
        return {
            "recipe": self.recipe.state_dict(),
            "optimizer": self.update.state_dict(),
            "weights": self.weights.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.recipe.load_state_dict(state["recipe"])
        self._has_learnt = True
        self.update.load_state_dict(state["optimizer"])
        self.weights.load_state_dict(state["weights"])

    def release(self) -> None:
        """Take the hooks off teacher and student."""
        self._teacher.release()
        self.trainable.student.release()


def _of_photos(output: Tensor, batch: Batch) -> Tensor:
    """A map of crops without what it says of their padding."""
    return output if batch.inside is None else output * batch.inside.to(output.dtype)
