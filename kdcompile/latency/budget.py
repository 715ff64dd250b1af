"""How much is measured."""

import math
from dataclasses import dataclass

from kdcompile.core.errors import KDError
from kdcompile.latency.warmup import Pace

MIN_BLOCKS = 2


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        processes: of each build; each is started anew.
        blocks: of each subject in each process.
        builds: of each subject.
        seconds: that all of it may take, the starts of processes too but not the builds. One
            process of each build with two blocks a side is taken however long that is.
        process_s: that one process may take, its start too.
        samples: inferences of each subject in all, in one process: in place of blocks, for who
            wants few and no verdict.
    """

    processes: int = 3
    blocks: int = 20
    builds: int = 1
    seconds: float = 60.0
    samples: int | None = None
    process_s: float = math.inf

    def sizes(self, pace: Pace) -> list[int]:
        """Inferences of each block of a process."""
        if self.samples is None:
            return [pace.iterations] * self.blocks
        count = min(self.blocks, self.samples)
        each, more = divmod(self.samples, count)
        return [each + (i < more) for i in range(count)]

    def check(self, streams: int = 1) -> None:
        """Refuse what cannot be measured, with so many inferences in flight.

        Raises:
            KDError: `effort-refused`.
        """
        least = {"processes": 1, "blocks": MIN_BLOCKS, "builds": 1, "samples": MIN_BLOCKS}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise _effort(name, value, f"at least {low}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise _effort("seconds", self.seconds, "a time above 0")
        if self.samples is not None and self.builds > 1:
            raise _effort("samples", self.samples, "one build, as they are of one process")
        if self.samples is not None and streams > 1:
            raise _effort("samples", self.samples, "one stream, as they follow each other")


def _effort(name: str, value: object, wanted: str) -> KDError:
    return KDError(
        "effort-refused",
        f"{name} {value} was asked for, and it takes {wanted}",
        where="the measurement",
        fix=f"give {name} {wanted}",
    )
