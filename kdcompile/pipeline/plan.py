"""What a build would do, and the build itself."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcompile.artifact import Artifact, Step, Store
from kdcompile.backends.board import Board
from kdcompile.distributed import leave, made_by_main, processes
from kdcompile.doctor import version
from kdcompile.pipeline.board import find_board
from kdcompile.pipeline.keys import key_parts, measures, step_key
from kdcompile.pipeline.stages import STAGES, upstream
from kdcompile.spec import Spec
from kdcompile.targets import Target, load

log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Plan:
    """A spec bound to a target. A step's key is known once its inputs are made."""

    spec: Spec
    target: Target
    store: Store
    parts: Mapping[str, Mapping[str, Any]]
    board: Board | None = None

    def found(self) -> dict[str, Artifact]:
        """Every finished artifact of this build, by stage."""
        made: dict[str, Artifact] = {}
        for name in STAGES:
            key = self._key(name, made)
            artifact = None if key is None else self.store.find(name, key)
            if artifact is not None:
                made[name] = artifact
        return made

    @property
    def awaits_search(self) -> bool:
        """Whether the student is still to be searched for, which trains on the data."""
        return self.spec.student.searches and "search" not in self.found()

    def make(self, stage: str) -> Artifact:
        """The stage's artifact, made if it is not there, and before it whatever it needs.

        Of several processes (torchrun) the first one runs every stage, and the others only take
        part in those that run in parallel: for them this ends the program.

        Raises:
            KDError: any stage's.
        """
        made, place = self.found(), processes()
        place.barrier()  # all have seen the same store before anyone writes to it
        todo = [n for n in upstream(stage) if n not in made] if stage not in made else []
        last = max((n for n, name in enumerate(todo) if STAGES[name].parallel), default=-1)
        for name in todo[: last + 1]:
            made[name] = self._run_together(name, made)
        if not place.is_main:
            leave()
            sys.exit(0)
        for name in todo[last + 1 :]:
            made[name] = self._run(name, made)
        return made[stage]

    def _run_together(self, name: str, made: Mapping[str, Artifact]) -> Artifact:
        """A stage while other processes follow."""
        place = processes()
        if place.is_main or STAGES[name].parallel:
            artifact = self._run(name, made)
        if not STAGES[name].parallel:
            place.barrier()
        if not place.is_main:
            key = self._key(name, made)
            assert key is not None, "upstream stages come first"
            artifact = made_by_main(self.store, name, key)
        return artifact

    def _key(self, name: str, made: Mapping[str, Artifact]) -> str | None:
        stage = STAGES[name]
        ready = all(needed in made for needed in stage.inputs)
        return step_key(stage, self.parts[name], made) if ready else None

    def _run(self, name: str, made: Mapping[str, Artifact]) -> Artifact:
        log.info("%s", name)
        stage, key = STAGES[name], self._key(name, made)
        assert key is not None, "upstream stages come first"
        inputs = {needed: made[needed] for needed in stage.inputs}
        board = self.board if measures(stage, self.spec) else None
        step = Step(name, key, self.spec.only(stage.sections), inputs, board)
        return stage.load()(step, self.store, self.target)


def make_plan(spec: Spec, via: str | None = None) -> Plan:
    """Resolve the target, ask the board if there is one, and hash what the steps depend on.

    Args:
        spec: what is asked for.
        via: where the engine is built; None for this machine.

    Raises:
        KDError: an unknown target, a file that is missing, or a board that does not answer.
    """
    store = Store(spec.folder / ".kdcompile")
    board, target = find_board(spec, resolve_target(spec.target), via)
    parts = key_parts(spec, target, store.hasher, board)
    store.hasher.save()
    return Plan(spec, target, store, parts, board)


def resolve_target(name: str) -> Target:
    """The target; a workstation's with the TensorRT that is installed here, if one is."""
    target = load(name)
    found = version("tensorrt")
    if target.kind == "workstation" and found is not None:
        return target.with_backend(found)
    return target
