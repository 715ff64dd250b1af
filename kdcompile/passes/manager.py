"""The plan of a build and its run."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from kdcompile.bundle.trust import Trust
from kdcompile.config.deploy import Compile
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board, Step
from kdcompile.core.backends import find, is_served
from kdcompile.core.distributed import leave, made_by_main, processes
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch_below
from kdcompile.core.logs import kept_in
from kdcompile.core.progress import StageFinished, StageHit, StageStarted, emit
from kdcompile.core.store import Artifact, Store
from kdcompile.data.check import check_data
from kdcompile.data.splits import Row, load_splits
from kdcompile.environment.doctor import version
from kdcompile.passes.keys import covered, data_rows, key_parts, measures, step_key
from kdcompile.passes.stages import STAGES, upstream
from kdcompile.passes.why import NEVER, REUSED, keep, reasons
from kdcompile.remote.open import evidence_of, facts_of
from kdcompile.targets import Target, load

log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Plan:
    """A spec bound to a target. A step's key is known once its inputs are made.

    `parts` is what each stage's key covers beside its inputs, `rows` what the splits hold, `trust`
    what the caller demands of an earlier bundle.
    """

    spec: Spec
    target: Target
    store: Store
    parts: Mapping[str, Mapping[str, Any]]
    board: Board | None = None
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    trust: Trust = field(default_factory=Trust)

    def found(self) -> dict[str, Artifact]:
        """Every finished artifact of this build, by stage."""
        made: dict[str, Artifact] = {}
        for name in STAGES:
            key = self._key(name, made)
            artifact = None if key is None else self.store.find(name, key)
            if artifact is not None:
                made[name] = artifact
        return made

    def why(self, name: str, made: Mapping[str, Artifact]) -> list[str]:
        """What makes a step run that is not among those that are made."""
        stage = STAGES[name]
        cover = covered(stage, self.parts[name], made)
        own = reasons(self.store, name, self._key(name, made), cover, self.rows)
        waits = [needed for needed in stage.inputs if needed not in made]
        return own if own == [NEVER] or not waits else [*own, f"after {', '.join(waits)}"]

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
        if place.is_main:
            self.store.sweep()
        place.barrier()  # all have seen the same store before anyone writes to it
        todo = [n for n in upstream(stage) if n not in made] if stage not in made else []
        for name in (name for name in upstream(stage) if name in made):
            log.debug("%s: cached %s", name, made[name].path)
            emit(StageHit(name, made[name].key))
        if todo and place.is_main:
            with kept_in(self.store.root):
                return self._make(todo, made)[stage]
        return self._make(todo, made)[stage]

    def _make(self, todo: Sequence[str], made: dict[str, Artifact]) -> dict[str, Artifact]:
        """Run the steps in order, adding them to what is made."""
        place = processes()
        if place.is_main and any(self.parts[name]["splits"] for name in todo):
            check_data(self.spec, self.store.root)  # before anything is trained
        if place.is_main and "distill" in todo:
            from kdcompile.passes.refusals import refuse_settings  # a build that is made has none

            refuse_settings(self.spec, load_splits(self.spec.data, self.spec.folder))
        last = max((n for n, name in enumerate(todo) if STAGES[name].parallel), default=-1)
        for name in todo[: last + 1]:
            made[name] = self._run_together(name, made)
        if not place.is_main:
            leave()
            sys.exit(0)
        for name in todo[last + 1 :]:
            made[name] = self._run(name, made)
        return made

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
        why = self.why(name, made)
        for reason in why:
            log.log(logging.DEBUG if reason == NEVER else logging.INFO, "%s: %s", name, reason)
        emit(StageHit(name, key) if why == [REUSED] else StageStarted(name, tuple(why)))
        began = time.monotonic()
        inputs = {needed: made[needed] for needed in stage.inputs}
        board = self.board if measures(stage, self.spec) else None
        spec, trust = self.spec.only(stage.sections), self.trust
        step = Step(name, key, spec, inputs, board, trust.key, trust.expect)
        artifact = stage.load()(step, self.store, self.target)
        with suppress(OSError):  # the step is made; why the next one runs is a courtesy
            keep(self.store, artifact, covered(stage, self.parts[name], inputs), self.rows)
        if why != [REUSED]:
            seconds = time.monotonic() - began
            log.info("%s: done in %.1f s", name, seconds)
            emit(StageFinished(name, key, seconds))
        return artifact


def make_plan(spec: Spec, via: str | None = None) -> Plan:
    """Resolve the target, ask the board if there is one, and hash what the steps depend on.

    Args:
        spec: what is asked for.
        via: where the engine is built; None for this machine.

    Raises:
        KDError: an unknown target, a file that is missing, or a board that does not answer;
            `name-unprintable`.
    """
    check_name(spec)
    store = Store(spec.folder / ".kdcompile")
    scratch_below(store.temporary)
    target = replace(resolve_target(spec.target), tf32=spec.compile.tf32)
    board, target = find_board(spec, target, via)
    rows = data_rows(spec, store.hasher)
    parts = key_parts(spec, target, store.hasher, board, rows)
    store.save_hashes()
    return Plan(spec, target, store, parts, board, rows)


def check_name(spec: Spec) -> None:
    """Refuse a folder whose name no bundle may have, before anything is made for it.

    Raises:
        KDError: `name-unprintable`.
    """
    if spec.name and spec.name.isprintable():
        return
    what = f"{spec.name!r} has characters that are not printed" if spec.name else "it has no name"
    raise KDError(
        "name-unprintable",
        f"the spec's folder names the bundle, and {what}",
        where=str(spec.folder),
        fix="give the folder another name, or move the spec and its files into one that has",
    )


def resolve_target(name: str) -> Target:
    """The target; a workstation's with the TensorRT that is installed here, if one is."""
    target = load(name)
    found = version(target.runtime)
    if target.kind == "workstation" and found is not None:
        return target.with_backend(found)
    return target


def find_board(spec: Spec, target: Target, via: str | None) -> tuple[Board | None, Target]:
    """The place that builds the engine, or None where this build makes none, and the target.

    A workstation's target takes the TensorRT that is found there.

    Raises:
        KDError: `option-refused`; the place does not answer, or is another device than the target.
        ToolMissingError: the backend is not installed there.
    """
    _refuse_options(spec, target)
    backend = backend_for(spec, target, via)
    if backend is None:
        return None, target
    from kdcompile.remote.open import open_place  # loads numpy, which planning alone does not need

    with open_place(via, backend) as place:
        about, label = place.about, place.label
    if target.kind == "workstation" and backend == target.runtime:
        target = target.with_backend(str(about["backend_version"]))
    evidence = evidence_of(about, target, label)
    return Board(via, backend, label, facts_of(about), evidence), target


def _refuse_options(spec: Spec, target: Target) -> None:
    """An option is not ignored for a target whose backend has none of it."""
    options = spec.compile.model_dump(exclude={"backend", "workspace_mb"})
    able = find(target.runtime).capabilities(target).options
    for name, value in options.items():
        if value == Compile.model_fields[name].default or name in able:
            continue
        raise KDError(
            "option-refused",
            f"compile.{name} is no option of {target.runtime}, which builds for {target.name}",
            where="[compile]",
            fix="leave it out, or name a device that has it: --target jetson",
        )


def backend_for(spec: Spec, target: Target, via: str | None) -> str | None:
    """The backend that builds; None where ONNX Runtime of this process is all that a build runs."""
    asked = spec.compile.backend
    if asked == "auto":
        if via is not None or is_served(target.runtime):
            return target.runtime
        return target.runtime if target.kind == "workstation" and version(target.runtime) else None
    return None if asked == "onnxruntime" and via is None else asked
