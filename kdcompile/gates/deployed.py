"""The engine at its board: run over the test images, and timed next to the teacher's."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.config.step import Board, Step
from kdcompile.core.report import Measurement
from kdcompile.data.preprocess import Input
from kdcompile.gates.context import MODES, Latency, Origin
from kdcompile.remote.open import Place
from kdcompile.stats.latency_interval import PairedTimes, median_interval
from kdcompile.tasks.task import ports_of

TEACHER, STUDENT = "teacher", "student"
BOTH = (TEACHER, STUDENT)
TURNS, SECONDS = 30, 60.0
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Deployed:
    """Teacher and student, loaded in the worker of a board.

    Args:
        place: the board's, open.
        board: its facts.
        precisions: of teacher and student, by name.
        seed: of the intervals.
    """

    place: Place
    board: Board
    precisions: Mapping[str, str]
    seed: int

    @property
    def origin(self) -> Origin:
        """What its measurements prove."""
        board = self.board
        return Origin(board.machine, board.backend, board.version, board.evidence)

    @property
    def student(self) -> engine.EngineRunner:
        """The deployed network."""
        return engine.runner(self.place, self.board, STUDENT)

    def times(self, image: Input) -> tuple[Latency, tuple[Measurement, ...]]:
        """Teacher and student in turns, in the judged mode and in the others, on an input."""
        shape = image.shape
        log.info("verify: timing teacher and student at %s", self.board.label)
        judged, pace = engine.judged_pace(self.place, BOTH, image, turns=TURNS, seconds=SECONDS)
        found = self._turns(image, judged, pace)
        mode = self._mode(judged, shape)
        latency = Latency(
            PairedTimes(found[TEACHER], found[STUDENT], pace.iterations),
            self.precisions[STUDENT],
            mode,
            self.precisions[TEACHER],
        )
        able = engine.modes(self.place)
        others = able[able.index(judged) + 1 :]
        few = replace(pace, turns=engine.MIN_TURNS)  # these are told, and judge nothing
        extra = [
            self._measurement(who, samples, self._mode(other, shape))
            for other in others
            for who, samples in self._turns(image, other, few).items()
        ]
        return latency, tuple(extra)

    def _turns(self, image: Input, mode: str, pace: engine.Pace) -> dict[str, NDArray[np.float64]]:
        return engine.in_turns(self.place, BOTH, image, mode=mode, **asdict(pace))

    def _mode(self, mode: str, shape: Sequence[int]) -> str:
        size = "x".join(map(str, shape))
        return f"{self.board.backend} at {self.board.label}, {size}, {MODES[mode]}, alternating"

    def _measurement(self, who: str, samples: NDArray[np.float64], mode: str) -> Measurement:
        value, low, high = median_interval(samples, self.seed)
        origin = self.origin
        return Measurement(
            f"{who} latency", value, "ms", origin.evidence, low=low, high=high, n=len(samples),
            machine=origin.machine, backend=origin.backend,
            backend_version=origin.backend_version, precision=self.precisions[who], mode=mode,
        )  # fmt: skip


@contextmanager
def deployed(step: Step) -> Iterator[Deployed | None]:
    """The engines of `compile`, loaded at the board after its pre-flight; None without a board.

    Raises:
        KDError: the board does not answer, or refuses an engine: `engine-mismatch` and its kin.
    """
    if step.board is None:
        yield None
        return
    compiled = step.inputs["compile"]
    with engine.at(step.board, ports_of(step.spec)) as place:
        precisions = {
            name: engine.take(place, compiled.file(file), name)
            for name, file in ((TEACHER, "teacher.engine"), (STUDENT, "model.engine"))
        }
        yield Deployed(place, step.board, precisions, step.spec.seed)
