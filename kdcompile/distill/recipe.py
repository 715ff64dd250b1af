"""Base class of recipes: loss terms with weights, made for one or more tasks, and their needs."""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from kdcompile.config.distill import Distill, Ramp, Weights
from kdcompile.config.spec import Spec
from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError, nearest
from kdcompile.data.augment import Batch
from kdcompile.distill.objective import AnyObjective, Objective
from kdcompile.distill.taps import Tap


@dataclass(frozen=True)
class RecipeContext:
    """What a recipe may look at, before the first step and during it.

    teacher: frozen, in the type that it runs in. student: the one that is trained. first: the
    student as it started, frozen; None where no recipe of the training needs it. others: the
    networks of `[[teachers]]`, frozen. photos: how many train. crops: gives one unaugmented crop
    of every photo, in batches. look: the teacher's output and maps for some images, without
    gradients. autocast: what the networks run in.
    """

    teacher: nn.Module
    student: nn.Module
    first: nn.Module | None
    others: Sequence[nn.Module]
    photos: int
    crops: Callable[[], Iterator[Batch]]
    look: Callable[[Tensor], tuple[Tensor, list[Tensor]]]
    autocast: Callable[[], AbstractContextManager[Any]]
    processes: Processes


@dataclass(frozen=True)
class Need:
    """Something that a recipe takes beside labels, teacher and taps, and how the spec gives it.

    what: in words, for the error. fix: what to write. is_met: by a spec.
    """

    what: str
    fix: str
    is_met: Callable[[Spec], bool]


def _least_batch(spec: Spec) -> int:
    asked = [stage.batch for stage in spec.distill.stages if stage.batch is not None]
    return min([spec.distill.batch, *asked])


NEEDS: Mapping[str, Need] = {
    "teachers": Need(
        "at least one more teacher",
        'add [[teachers]] with model = "..." and weights = "...", as [teacher] has them',
        lambda spec: bool(spec.teachers),
    ),
    "deployed": Need(
        "the student that is deployed now",
        'set student.init = "file" and student.weights to its student.safetensors',
        lambda spec: spec.student.init == "file",
    ),
    "own-student": Need(
        "a student with more classes than the teacher",
        'set student.family to a "module:factory" whose last classes are the new ones',
        lambda spec: ":" in spec.student.family,
    ),
    "pairs": Need(
        "batches of at least 2 images, which it compares",
        "set distill.batch, and that of every stage, to 2 or more",
        lambda spec: _least_batch(spec) >= 2,
    ),
    "triples": Need(
        "batches of at least 3 images, which it compares",
        "set distill.batch, and that of every stage, to 3 or more",
        lambda spec: _least_batch(spec) >= 3,
    ),
}


def refuse_unmet(name: str, needs: Sequence[str], spec: Spec) -> None:
    """Refuse a recipe whose needs a spec does not meet.

    Raises:
        KDError: `recipe-needs`, with what is missing and how to give it.
    """
    missing = [NEEDS[need] for need in needs if not NEEDS[need].is_met(spec)]
    if missing:
        raise KDError(
            "recipe-needs",
            f"recipe {name} needs {' and '.join(need.what for need in missing)}",
            where="[distill] recipe",
            fix="; ".join(need.fix for need in missing),
        )


@dataclass(frozen=True)
class About:
    """What `kdcompile recipes show` prints.

    home: where it lives, for what is no loss ("augmentation", a command or a field). evidence: what
    shows that it works; where a built-in recipe names none, its test and docs/recipes.md.
    """

    name: str
    summary: str
    formula: str
    source: str
    cost: str
    evidence: str = ""
    home: str = "loss"


@dataclass(frozen=True)
class LossInputs:
    """Everything that a recipe may compare in one step.

    student: the task's output; target: its labels, and in `base` probabilities [N, K] of classes
    where images are mixed; teacher: the same output, or None where it is
    not needed. The features are the taps' maps [N, C, H, W], in order. images: what both networks
    saw. photo: int64 [N], the index of each crop's photo. first: the output of the student as it
    started, where the recipe needs it. others: outputs of the further teachers, where it needs
    them. Nothing but the student's output and features has a gradient. Photos without labels come
    last: `target` and `photo` are of the rows before them, all others of all rows.
    """

    student: Tensor
    target: Tensor
    teacher: Tensor | None
    student_features: Sequence[Tensor]
    teacher_features: Sequence[Tensor]
    images: Tensor | None = None
    photo: Tensor | None = None
    first: Tensor | None = None
    others: Sequence[Tensor] = ()

    @property
    def labelled(self) -> int:
        """How many rows have labels."""
        return len(self.target)

    def with_labels(self) -> "LossInputs":
        """The rows that have labels."""
        if self.labelled == len(self.student):
            return self
        return replace(
            self,
            student=self.student[: self.labelled],
            teacher=None if self.teacher is None else self.teacher[: self.labelled],
            student_features=[maps[: self.labelled] for maps in self.student_features],
            teacher_features=[maps[: self.labelled] for maps in self.teacher_features],
            images=None if self.images is None else self.images[: self.labelled],
            first=None if self.first is None else self.first[: self.labelled],
            others=[output[: self.labelled] for output in self.others],
        )


class Recipe(nn.Module, ABC):
    """Loss terms with their weights. Adapters are its parameters, so they are never exported.

    extra_weights: default weights of the terms beyond the objective's, by reduction.
    needs_teacher, needs_taps, needs_first, needs_others: what a step computes for it.
    needs: names of `NEEDS`, what the spec must give.
    replaces_soft: its own terms stand for the objective's soft term.
    widens: its student may have more classes than the teacher, whose classes come first.
    mixes_images: its `view` changes the batch, so no teacher output recurs.
    reads_labels: its own terms need labels or the number of a photo, so they are of crops that have
        both; those of other recipes are of the crops without labels too.
    reads_maps: it compares or mixes the labels of counting as maps, which points are not.
    tasks: the kinds that it is made for, all if empty; why: what others lack.
    """

    about: ClassVar[About]
    extra_weights: ClassVar[Mapping[str, Mapping[str, float | Ramp]]] = {"mean": {}, "paper": {}}
    needs_teacher: ClassVar[bool] = True
    needs_taps: ClassVar[bool] = False
    needs_first: ClassVar[bool] = False
    needs_others: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    replaces_soft: ClassVar[bool] = False
    widens: ClassVar[bool] = False
    mixes_images: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    reads_maps: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()
    why: ClassVar[str] = ""

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """Weights by name: the defaults of objective and recipe, then the spec's.

        Raises:
            KDError: `recipe-term`, or `recipe-task`.
        """
        super().__init__()
        self.refuse_task(objective.kind)
        self.refuse_terms(objective, options)
        known = self.defaults(objective, options.reduction)
        self.weights = {**known, **options.weights}
        self.objective, self.options = objective, options

    @classmethod
    def learns_unlabelled(cls) -> bool:
        """Whether a photo without labels has a term of it."""
        return cls.needs_teacher and not (cls.replaces_soft and cls.reads_labels)

    @classmethod
    def refuse_task(cls, kind: str) -> None:
        """Refuse a task that the recipe is not made for.

        Raises:
            KDError: `recipe-task`, with what the task lacks.
        """
        if cls.tasks and kind not in cls.tasks:
            why = f": {cls.why}" if cls.why else ""
            raise KDError(
                "recipe-task",
                f"recipe {cls.about.name} is for {', '.join(cls.tasks)}, not {kind}{why}",
                where="[distill] recipe",
                fix="use kd or none; kdcompile recipes describes them",
            )

    @classmethod
    def refuse_terms(cls, objective: AnyObjective, options: Distill) -> None:
        """Refuse a weight of a term that there is not.

        Raises:
            KDError: `recipe-term`.
        """
        known = cls.defaults(objective, options.reduction)
        unknown = set(options.weights) - set(known)
        if unknown:
            name = sorted(unknown)[0]
            raise KDError(
                "recipe-term",
                f"recipe {cls.about.name} has no term {name!r}" + nearest(name, known),
                where="[distill.weights]",
                fix=f"one of {', '.join(known)}",
            )

    @classmethod
    def refuse_labels(cls, labels: Sequence[float], classes: int | None) -> None:
        """Refuse labels of training images from which the recipe cannot learn.

        Args:
            labels: one an image.
            classes: outputs of a teacher of classes; None for other tasks.

        Raises:
            KDError: what the recipe needs is not there.
        """

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """The default weight of each term for a task."""
        own = objective.weights[reduction]
        has_soft = cls.needs_teacher and not cls.replaces_soft
        shared = {n: w for n, w in own.items() if has_soft or n != "soft"}
        return {**shared, **cls.extra_weights[reduction]}

    def is_off(self, term: str) -> bool:
        """True when the term's weight is zero throughout."""
        return self.weights[term] == 0

    def prepare(self, context: RecipeContext) -> None:
        """Make parameters and buffers whose sizes the data or the networks decide; cheap.

        Called once, before `fit`, at every start and resumption. A reference to a network is kept
        in a tuple, so that it is no submodule.

        Raises:
            KDError: what the recipe needs is not there.
        """

    def fit(self, inputs: LossInputs) -> None:
        """Set the recipe's own parameters from a first batch; here there are none."""

    def learn(self, context: RecipeContext) -> None:
        """What takes a pass over the photos before the first step, into parameters and buffers.

        Not called where a checkpoint has them already. The same in every process.
        """

    def view(self, batch: Batch) -> Batch:
        """What both networks see in place of a step's batch; random numbers are torch's own.

        Runs on the device without gradients and waits for nothing there.
        """
        return batch

    def base(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The objective's terms: of the labels, and `soft` unless the recipe replaces it."""
        teacher = inputs.teacher if self.needs_teacher and not self.replaces_soft else None
        return self.objective.terms(inputs.student, inputs.target, teacher)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The recipe's own unweighted terms by name, scalars; one that is off may be left out."""
        return {}

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The term `soft` of crops without labels."""
        return self.objective.soft(student, teacher)

    def extra_terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`extra`, of the crops with labels alone where it reads these."""
        return self.extra(inputs.with_labels() if self.reads_labels else inputs)

    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """All unweighted terms by name, float32 scalars; `soft` is the mean over all crops."""
        terms, known, every = self.base(inputs.with_labels()), inputs.labelled, len(inputs.student)
        if known < every and "soft" in terms:
            assert inputs.teacher is not None, "where there is none, a recipe has no such term"
            rest = self.soft(inputs.student[known:], inputs.teacher[known:])
            terms["soft"] = (terms["soft"] * known + rest * (every - known)) / every
        return terms | self.extra_terms(inputs)

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`terms`, so that hooks and wrappers of modules see the call."""
        return self.terms(inputs)
