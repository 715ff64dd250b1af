"""Several processes of one job, started by torchrun: PyTorch's own distributed engine.

Without torchrun there is one process and nothing here touches `torch.distributed`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from torch import Tensor

    from kdcompile.core.store import Artifact, Store

TIMEOUT = timedelta(hours=2)  # a stage that one process runs while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among those of the job.

    rank: 0 is the one that writes; world: how many there are; local_rank: its GPU on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes artifacts and talks to the user."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def barrier(self) -> None:
        """Wait for every process.

        Raises:
            KDError: `rank-lost`.
        """
        if not self.is_alone:
            import torch
            from torch import distributed

            with lost_rank():
                distributed.all_reduce(torch.zeros(1))

    def told(self, value: bool) -> bool:
        """What the first process says, on each of them.

        Raises:
            KDError: `rank-lost`.
        """
        if self.is_alone:
            return value
        import torch

        return bool(self.gather(torch.tensor([float(value)]))[0])

    def mean(self, tensor: "Tensor") -> "Tensor":
        """The mean of a tensor over the processes, on each of them.

        Raises:
            KDError: `rank-lost`.
        """
        if not self.is_alone:
            from torch import distributed

            with lost_rank():
                distributed.all_reduce(tensor)
            tensor /= self.world
        return tensor

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        """The tensors of all processes, of one shape, in the order of rank.

        Raises:
            KDError: `rank-lost`.
        """
        if self.is_alone:
            return [tensor]
        import torch
        from torch import distributed

        found = [torch.empty_like(tensor) for _ in range(self.world)]
        with lost_rank():
            distributed.all_gather(found, tensor.contiguous())
        return found


@cache
def processes() -> Processes:
    """This process's place, from what torchrun sets; the first call joins the group.

    Raises:
        KDError: `rank-lost`, when the others do not come.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes()
    import torch
    from torch import distributed

    place = Processes(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    with lost_rank():
        distributed.init_process_group(backend, timeout=TIMEOUT)
    return place


def made_by_main(store: "Store", stage: str, key: str) -> "Artifact":
    """An artifact that the first process has made.

    Raises:
        KDError: `store-not-shared`.
    """
    artifact = store.find(stage, key)
    if artifact is None:
        raise KDError(
            "store-not-shared",
            f"the first process made {stage}, and it is not in the store of this one",
            where=str(store.root),
            fix="put the spec's folder on a disk that all machines of the job share",
        )
    return artifact


def leave() -> None:
    """Take leave of the group in good order."""
    if processes().is_alone:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def lost_rank() -> Iterator[None]:
    """Turn the failure of a collective into an error that says what to do.

    Raises:
        KDError: `rank-lost`.
    """
    try:
        yield
    except RuntimeError as error:  # torch's DistError and gloo's and NCCL's own
        raise KDError(
            "rank-lost",
            f"another process of this job is gone: {str(error).strip().splitlines()[0]}",
            where=f"rank {os.environ.get('RANK', '0')}",
            fix="its own error stands above; run the same torchrun command again, it goes on from "
            "the last checkpoint",
        ) from error
