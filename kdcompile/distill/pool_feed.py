"""The part of each batch that has no labels: crops of `data.unlabelled`, and the teacher's outputs.

They are drawn as those of the training photos are, with random numbers of their own, and follow
them in the batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompile.config.distill import Distill
from kdcompile.data.augment import Batch, CropSampler
from kdcompile.data.rows import sampler_of
from kdcompile.data.targets import DensityTargets, Targets
from kdcompile.distill.objective import objective_of
from kdcompile.distill.recipe import Recipe
from kdcompile.distill.teacher_cache import Look, TeacherCache, make_cache
from kdcompile.distill.training_context import TrainingContext
from kdcompile.distill.unlabelled import pool_crops
from kdcompile.tasks.task import task_of

OWN_NUMBERS = 500_009  # apart from the seeds of the stages
Known = tuple[Tensor, list[Tensor]]


class NoTargets:
    """What crops without labels are labelled with: nothing, float32 [B, 0]."""

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """Nothing for each row of the table."""
        return table.new_zeros(len(table), 0)


class PoolFeed:
    """Crops of photos without labels, step by step.

    Args:
        sampler: draws them.
        crops: of each batch.
        photos: how many there are.
        device: where they are made.
    """

    def __init__(self, sampler: CropSampler, crops: int, photos: int, device: torch.device) -> None:
        self.crops, self._photos, self._sampler = crops, photos, sampler
        self._table = torch.empty_like(sampler.draw(0), device=device)
        self._index = torch.zeros(crops, dtype=torch.int64, device=device)
        self._cache: TeacherCache | None = None

    def fill(
        self, look: Look, steps: int, batch: int, room: int, work: Path, identity: str
    ) -> str | None:
        """Cache what the teacher says of crops that recur; or why it is computed each time."""
        made = make_cache(look, self._sampler, steps, batch, room, work, identity)
        self._cache, why = made
        return why

    def load(self, step: int) -> None:
        """Send what a step needs to its static places; the copies are not waited for."""
        table = self._sampler.draw(step)
        if table.shape == self._table.shape:
            self._table.copy_(table, non_blocking=True)
        else:
            self._table = table
        keys = self._sampler.keys(step)
        if self._cache is not None and keys is not None:
            self._index.copy_(self._cache.rows(keys), non_blocking=True)

    def render(self) -> Batch:
        """The crops of the step that is loaded; device work only."""
        return self._sampler.render(self._table)

    def batch(self, step: int) -> Batch:
        """The crops of any step."""
        return self._sampler.batch(step)

    def known(self, own: Known | None) -> Known | None:
        """The teacher's outputs of a whole batch where those of both parts are cached."""
        if own is None or self._cache is None:
            return None
        output, maps = self._cache.read(self._index)
        return torch.cat([own[0], output]), [
            torch.cat(pair) for pair in zip(own[1], maps, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """For the report."""
        return {"photos": self._photos, "crops_of_a_batch": self.crops}


def make_pool_feed(
    setting: TrainingContext,
    kind: type[Recipe],
    options: Distill,
    seed: int,
    place: tuple[int, int],
) -> PoolFeed | None:
    """The part without labels of a stage's batches; None where it has none.

    Args:
        setting: of the training.
        kind: the recipe.
        options: of the stage.
        seed: of its crops.
        place: rank and world of this process.
    """
    crops, store = pool_crops(options), setting.pool
    if store is None or not crops or not kind.learns_unlabelled():
        return None
    photos = store.photos
    own = options.model_copy(update={"batch": crops})
    sampler = sampler_of(store)(
        photos, setting.preprocess, own, _targets(setting, own, photos), seed + OWN_NUMBERS,
        setting.device, shard=place, store=store,
    )  # fmt: skip
    if setting.bf16:
        sampler.dtype = torch.bfloat16
    return PoolFeed(sampler, crops, len(photos), setting.device)


def viewed(recipe: Recipe, batch: Batch) -> Batch:
    """`Recipe.view` of the crops that have labels; the others are as they were drawn."""
    if batch.labelled == len(batch.images):
        return recipe.view(batch)
    return recipe.view(batch.with_labels()).beside(batch.without_labels())


def _targets(setting: TrainingContext, options: Distill, photos: Sequence[Any]) -> Targets:
    """Nothing; of densities empty maps, with what lies inside the photos."""
    kind = objective_of(task_of(setting.spec), options)
    if kind.kind != "counting":
        return NoTargets()
    made = kind.targets(photos, setting.stride, setting.spec.data.sigma, setting.device)
    return made if isinstance(made, DensityTargets) else NoTargets()
