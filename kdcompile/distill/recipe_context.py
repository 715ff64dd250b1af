"""Context of a recipe: the networks, the data and the processes, and what its spec must give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch


@dataclass(frozen=True)
class Ground:
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
