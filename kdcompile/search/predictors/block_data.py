"""Training data for blocks: training crops, the teacher's cuts, and an order of its channels.

The crops and the orders are made once and kept in the store; whoever measures a block reads them
and runs the teacher as far as the block's cut.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher, write_json
from kdcompile.core.sources import source_key
from kdcompile.core.store import Store, digest
from kdcompile.core.user_code import factory_sources
from kdcompile.data.augment import CropSampler
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.splits import load_splits, splits_digest
from kdcompile.distill.checks import output_stride
from kdcompile.distill.objective import objective_of
from kdcompile.distill.training_context import training_device
from kdcompile.models.cuts import Cut, cuts
from kdcompile.models.factory import load_teacher, read_weights, write_weights
from kdcompile.search.predictors.teacher_features import (
    AT_ONCE,
    nested_order,
    output_demands,
    rows_of,
    teacher_maps,
)
from kdcompile.tasks.task import preprocess_of, task_of

SIDE = 256  # larger crops train a block nothing more, and cost
HELD_OUT = 4  # one training image in so many is held out
LIBRARIES = ("torch", "numpy", "pillow")
DATA_FIELDS = ("format", "mean", "std")
DISTILL_FIELDS = ("crop", "scale", "flip")


@dataclass(frozen=True)
class BlockOptions:
    """How blocks are trained: crops to learn from, crops held out, Adam's steps, batch and rate."""

    crops: int = 48
    held: int = 16
    steps: int = 300
    batch: int = 8
    lr: float = 2e-2


@dataclass(frozen=True)
class BlockContext:
    """All that an evaluation needs to start in a process of its own; equal by store and key.

    root: of the store; key: of the training data that are kept there.
    """

    spec: Spec = field(compare=False)
    root: Path
    options: BlockOptions = field(compare=False)
    key: str


@dataclass(frozen=True)
class TrainingData:
    """The teacher (inference mode) with its cuts, and crops [N, C, s, s], on one device.

    orders: for each cut its channels [C], so that every beginning explains the most of what the
    output makes of all. demands: what it makes of them (`output_demands`), [C, C], of trace C.
    """

    teacher: nn.Module
    cuts: Sequence[Cut]
    orders: Sequence[Tensor]
    demands: Sequence[Tensor]
    fit: Tensor
    held: Tensor

    def kept_channels(self, cut: int, maps: Tensor, width: int) -> Tensor:
        """The first `width` channels of a cut's maps, in its order; zeros beyond all of them."""
        order = self.orders[cut]
        chosen = maps[:, order[:width]]
        return functional.pad(chosen, (0, 0, 0, 0, 0, max(0, width - len(order))))


def prepare_training_data(spec: Spec, options: BlockOptions, store: Store) -> BlockContext:
    """Make the training data, unless the store has them.

    Args:
        spec: its sections seed, task, teacher, data, distill and export.
        options: how many crops.
        store: where they are kept, as stage `training_data`.

    Raises:
        KDError: `stages-unknown`, or those of the teacher and the data.
    """
    key = _key(spec, options, store.hasher)

    def build(folder: Path) -> Mapping[str, Any]:
        device = training_device()
        teacher = load_teacher(spec).to(device)
        crop = spec.distill.crop  # smaller crops where that is sure to keep strides whole
        side = SIDE if crop > SIDE and crop % 32 == 0 else crop
        found = cuts(teacher, spec.export.profile[1])  # as the space of students has them
        fit, held = _crops(spec, teacher, options, side, device)
        demands = output_demands(teacher, [cut.name for cut in found], fit, spec.seed)
        moments = _covariances(teacher, found, fit)
        orders = [nested_order(*pair) for pair in zip(moments, demands, strict=True)]
        write_json(folder / "cuts.json", [asdict(cut) for cut in found])
        write_weights(folder / "crops.safetensors", {"fit": fit, "held": held})
        named = {f"order.{i}": order for i, order in enumerate(orders)}
        named |= {f"demand.{i}": demand.float() for i, demand in enumerate(demands)}
        write_weights(folder / "orders.safetensors", named)
        return {"cuts": [cut.name for cut in found], "crops": len(fit), "held": len(held)}

    store.make("lessons", key, build)
    return BlockContext(spec, store.root, options, key)


def context_without_data(spec: Spec, options: BlockOptions, store: Store) -> BlockContext:
    """A context without training data, for students that are not made of trained blocks.

    Raises:
        KDError: `weights-missing`, or those of the data.
    """
    return BlockContext(spec, store.root, options, _key(spec, options, store.hasher))


@functools.lru_cache(maxsize=1)
def training_data(context: BlockContext) -> TrainingData:
    """The training data of a context, read once a process."""
    device = training_device()
    entry = Store(context.root).find("lessons", context.key)
    if entry is None:
        raise KDError(
            "evidence-gone",
            f"the store's entry lessons/{context.key[:8]} was removed during the search",
            where=str(context.root),
            fix="run the search again; finished results are kept in the store",
        )
    crops, _ = read_weights(entry.file("crops.safetensors"))
    orders, _ = read_weights(entry.file("orders.safetensors"))
    found = [Cut(**cut) for cut in entry.json("cuts.json")]
    return TrainingData(
        load_teacher(context.spec).to(device).requires_grad_(False),
        found,
        [orders[f"order.{i}"].to(device) for i in range(len(found))],
        [orders[f"demand.{i}"].to(device) for i in range(len(found))],
        crops["fit"].to(device),
        crops["held"].to(device),
    )


def _covariances(teacher: nn.Module, found: Sequence[Cut], images: Tensor) -> list[Tensor]:
    """Covariance [C, C] of each cut's channels over sampled positions, float64."""
    sums: list[list[Tensor]] = [[] for _ in found]
    for _, maps in teacher_maps(teacher, [cut.name for cut in found], images):
        for i, each in enumerate(maps):
            rows = rows_of(each, i).double()
            new = [rows.new_tensor(float(len(rows))), rows.sum(0), rows.T @ rows]
            sums[i] = [a + b for a, b in zip(sums[i], new, strict=True)] if sums[i] else new
    means = [(total / count, squares / count) for count, total, squares in sums]
    return [squares - torch.outer(mean, mean) for mean, squares in means]


def _crops(
    spec: Spec, teacher: nn.Module, options: BlockOptions, side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Crops to learn from and held-out ones, of different images where there are several."""
    photos = load_splits(spec.data, spec.folder).train
    apart = photos[::HELD_OUT] if len(photos) > 1 else photos
    rest = [p for i, p in enumerate(photos) if i % HELD_OUT] or photos

    def draw_crops(chosen: Sequence[Photo], number: int) -> Tensor:
        plain = {"batch": min(AT_ONCE, number), "crop": side, "colour": 0.0, "views": 0}
        distill = spec.distill.model_copy(update=plain)
        stride = output_stride(teacher, teacher, spec.model_copy(update={"distill": distill}))
        targets = objective_of(task_of(spec)).targets(chosen, stride, spec.data.sigma, device)
        preprocess = preprocess_of(spec)
        store = ImageStore(chosen, preprocess.channels, device)
        sampler = CropSampler(chosen, preprocess, distill, targets, spec.seed, device, store=store)
        steps = range(-(-number // distill.batch))
        return torch.cat([sampler.batch(step).images for step in steps])[:number]

    return draw_crops(rest, options.crops), draw_crops(apart, options.held)


def _key(spec: Spec, options: BlockOptions, hasher: Hasher) -> str:
    """Everything that the training data depend on: no budget and no target.

    And the source of what all evidence is measured with, since its keys are made of this one.
    """
    factory = factory_sources(spec.teacher.model, spec.folder)
    if not spec.teacher.weights.is_file():
        raise KDError(
            "weights-missing",
            "there is no such file",
            where=str(spec.teacher.weights),
            fix="correct the path, or pass it with --set teacher.weights=PATH",
        )
    return digest(
        {
            "seed": spec.seed,
            "task": spec.task.kind,
            "teacher": [spec.teacher.model, hasher.file(spec.teacher.weights)],
            "data": [spec.data.model_dump(mode="json", include=set(DATA_FIELDS))],
            "train": splits_digest(spec.data, spec.folder, hasher)["train"],
            "distill": spec.distill.model_dump(mode="json", include=set(DISTILL_FIELDS)),
            "shape": spec.export.profile[1],
            "crops": [options.crops, options.held],
            "source": source_key(__name__, hasher),
            "factory": sorted(hasher.file(path) for path in factory),
            "libraries": [metadata.version(name) for name in LIBRARIES],
            "device": training_device().type,
        }
    )
