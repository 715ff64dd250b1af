"""The teacher's outputs of crops that recur, computed once and kept.

With `distill.views = V` each photo has V crops that come back, so what the teacher says of them
need not be computed twice. The cache lies in the device's memory and in a file beside the
checkpoint, named by the teacher and the augmentation; it is filled before the stage in an order of
its own, so that a resumed run reads the same numbers.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.core.files import is_sealed, seal
from kdcompile.core.progress import counted
from kdcompile.core.store import digest
from kdcompile.data.augment import CropSampler
from kdcompile.distill.recipe import Recipe

log = logging.getLogger("kdcompile")
Key = tuple[int, int]
Look = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class TeacherCache:
    """Outputs and maps by (photo, view), on the device.

    tensors: the output and then each tap's map, [crops, ...] each.
    """

    def __init__(self, keys: Sequence[Key], tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self._row = {key: row for row, key in enumerate(keys)}

    def rows(self, keys: Sequence[Key]) -> Tensor:
        """Where some crops lie, int64 on the host; pinned where the cache is on a GPU."""
        found = torch.tensor([self._row[key] for key in keys])
        return found.pin_memory() if self.tensors[0].is_cuda else found

    def read(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's output and maps of a batch."""
        output, *maps = (tensor.index_select(0, rows) for tensor in self.tensors)
        return output, maps

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors)


def cache_problem(kind: type[Recipe], options: Distill) -> str | None:
    """Why nothing can be cached, or None.

    Raises:
        KDError: `cache-mixed`, recurring crops are asked for under a recipe that changes its crops.
    """
    if options.views and kind.mixes_images:
        raise KDError(
            "cache-mixed",
            f"recipe {kind.about.name} mixes or changes its crops anew each step, so none recurs",
            where="[distill] views",
            fix="set distill.views = 0, or use a recipe that leaves crops as they are",
        )
    if not kind.needs_teacher:
        return "the recipe asks no teacher"
    if not options.views:
        return "every crop is new (distill.views = 0)"
    return None


def make_cache(
    look: Look, sampler: CropSampler, steps: int, batch: int, room: int, work: Path, identity: str
) -> tuple[TeacherCache | None, str | None]:
    """The cache of a stage, read from its file or filled; or why there is none.

    Args:
        look: the teacher.
        sampler: draws the stage's crops.
        steps: of the stage: only crops that it meets are looked at.
        batch: crops that the teacher sees at once.
        room: bytes that may be taken.
        work: folder of the file.
        identity: of the teacher and its taps.
    """
    keys = list(dict.fromkeys(key for step in range(steps) for key in sampler.keys(step) or ()))
    name = digest([identity, sampler.augmentation, keys])
    path = work / f"teacher-{name[:16]}.safetensors"
    first = _filled(look, sampler, keys[:batch])
    needed = sum(tensor[0].nbytes for tensor in first) * len(keys)
    if needed > room:
        return None, (
            f"the teacher's outputs of {len(keys)} crops need {needed / 1e6:,.0f} MB, "
            f"{room / 1e6:,.0f} may be taken (distill.teacher_cache_mb)"
        )
    found = _read(path, len(first), first[0].device)
    if found is None:
        log.info("distill: the teacher looks at %d crops, once", len(keys))
        places = range(batch, len(keys), batch)
        shown = counted(places, len(places), "distill", "batches that the teacher sees")
        parts = [first, *(_filled(look, sampler, keys[p : p + batch]) for p in shown)]
        found = [torch.cat(column) for column in zip(*parts, strict=True)]
        _write(path, found)
    return TeacherCache(keys, found), None


def _filled(look: Look, sampler: CropSampler, keys: Sequence[Key]) -> list[Tensor]:
    output, maps = look(sampler.render(sampler.sent(sampler.draw_keys(keys))).images)
    return [output.clone(), *(m.clone() for m in maps)]


def _read(path: Path, tensors: int, device: torch.device) -> list[Tensor] | None:
    """What the file holds; None where it is absent or torn, since it can be made again."""
    if not path.is_file():
        return None
    if not is_sealed(path):
        log.warning("distill: %s is damaged and is made again", path.name)
        return None
    with safe_open(path, framework="pt", device=str(device)) as stream:
        return [stream.get_tensor(str(place)) for place in range(tensors)]


def _write(path: Path, tensors: Sequence[Tensor]) -> None:
    plain = {str(place): t.contiguous().cpu() for place, t in enumerate(tensors)}  # not copied
    # in a folder of its own: `save_file` would replace a file that is held, and lose its lock
    with TemporaryDirectory(dir=path.parent) as folder:
        save_file(plain, whole := Path(folder, path.name))
        whole.replace(path)
    seal(path)


def network_digest(network: nn.Module) -> str:
    """A hash of a network's code (as printed) and every value of its state."""
    mark = hashlib.sha256(repr(network).encode())
    for name, tensor in network.state_dict().items():
        mark.update(name.encode())
        # flat: a counter such as a batch norm's has no dimension to view as bytes
        mark.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()
