"""Context that the stages of a training share: networks, images, device, precision."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.distributed import Processes, processes
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess, RowPreprocess
from kdcompile.data.rows import store_of
from kdcompile.distill.checks import output_stride, refuse_other_outputs
from kdcompile.distill.qad import make_quantisable
from kdcompile.distill.qad_layers import QadLayer
from kdcompile.distill.registry import any_recipe
from kdcompile.models.factory import load_teachers
from kdcompile.tasks.task import preprocess_of, task_of


@dataclass(frozen=True)
class TrainingContext:
    """What the stages of a training share.

    teacher: frozen, on the device, in the type that it runs in; others: those of `[[teachers]]`,
    likewise. student, ema: float32, on the device. first: the student as it started, frozen, where
    a recipe needs it. stride: pixels per output cell of a dense task, 1 for others. work: the
    folder of the checkpoint. layers: those that are quantised in the training; student and moving
    average have a quantiser each where there are any. pool: photos without labels, decoded.
    """

    spec: Spec
    teacher: nn.Module
    student: nn.Module
    ema: nn.Module
    photos: Sequence[Photo]
    store: ImageStore
    preprocess: Preprocess
    stride: int
    device: torch.device
    processes: Processes
    work: Path
    bf16: bool
    layers: Sequence[QadLayer] = ()
    first: nn.Module | None = None
    others: Sequence[nn.Module] = ()
    pool: ImageStore | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is trained in; its weight cache would not survive a captured graph."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def example(self, side: int) -> Tensor:
        """An empty input of one image, or an empty row."""
        kind = next(self.teacher.parameters()).dtype
        if isinstance(self.preprocess, RowPreprocess):
            return torch.zeros(1, self.preprocess.ports.width, device=self.device)
        return torch.zeros(1, self.preprocess.channels, side, side, device=self.device, dtype=kind)


def make_training_context(
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    photos: Sequence[Photo],
    work: Path,
    store: ImageStore | None = None,
    pool: Sequence[Photo] = (),
) -> TrainingContext:
    """Bring networks and photos to the device of this process, unless `store` holds them there.

    Networks and crops are in channels_last, which a CPU's convolutions are faster with, too. On a
    GPU the teacher runs in bfloat16 where the card has it, and of several processes all batch norms
    share their statistics.
    """
    device, place = training_device(), processes()
    fast = device.type == "cuda"
    bf16 = _in_bfloat16(spec, fast)
    torch.backends.cudnn.benchmark = fast  # crops of one size
    preprocess = preprocess_of(spec)
    loaded = load_teachers(spec) if any_recipe(spec, lambda kind: kind.needs_others) else []
    teacher, *others = (
        _placed(each, device).requires_grad_(False).eval() for each in (teacher, *loaded)
    )
    if bf16:
        teacher, *others = (each.bfloat16() for each in (teacher, *others))
    refuse_other_outputs(teacher, others, spec)
    student = _placed(student, device)
    first = None
    if any_recipe(spec, lambda kind: kind.needs_first):
        first = copy.deepcopy(student).requires_grad_(False).eval()
    if fast and not place.is_alone:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
    layers = make_quantisable(spec, student, spec.distill.crop)
    return TrainingContext(
        spec=spec,
        teacher=teacher,
        student=student,
        ema=copy.deepcopy(student).requires_grad_(False).eval(),
        photos=photos,
        store=store or store_of(photos, preprocess, device),
        preprocess=preprocess,
        stride=output_stride(teacher, student, spec),
        device=device,
        processes=place,
        work=work,
        bf16=bf16,
        layers=layers,
        first=first,
        others=others,
        pool=store_of(pool, preprocess, device) if pool else None,
    )


def _in_bfloat16(spec: Spec, fast: bool) -> bool:
    """Whether networks train in bfloat16, which would round the integers of a row."""
    asked = spec.distill.precision
    if asked == "auto":
        return fast and torch.cuda.is_bf16_supported() and not task_of(spec).takes_rows
    return asked == "bfloat16"


def training_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes().local_rank)


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
