"""What a build would do, and the build itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcompile.artifact import Artifact, Step, Store
from kdcompile.doctor import version
from kdcompile.pipeline.keys import key_parts, step_key
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

    def found(self) -> dict[str, Artifact]:
        """Every finished artifact of this build, by stage."""
        made: dict[str, Artifact] = {}
        for name in STAGES:
            key = self._key(name, made)
            artifact = None if key is None else self.store.find(name, key)
            if artifact is not None:
                made[name] = artifact
        return made

    def make(self, stage: str) -> Artifact:
        """The stage's artifact, made if it is not there, and before it whatever it needs.

        Raises:
            KDError: any stage's.
        """
        made = self.found()
        for name in upstream(stage) if stage not in made else []:
            if name not in made:
                made[name] = self._run(name, made)
        return made[stage]

    def _key(self, name: str, made: Mapping[str, Artifact]) -> str | None:
        stage = STAGES[name]
        ready = all(needed in made for needed in stage.inputs)
        return step_key(stage, self.parts[name], made) if ready else None

    def _run(self, name: str, made: Mapping[str, Artifact]) -> Artifact:
        log.info("%s", name)
        stage, key = STAGES[name], self._key(name, made)
        assert key is not None, "upstream stages come first"
        inputs = {needed: made[needed] for needed in stage.inputs}
        step = Step(name, key, self.spec.only(stage.sections), inputs)
        return stage.load()(step, self.store, self.target)


def make_plan(spec: Spec) -> Plan:
    """Resolve the target and hash what the steps depend on.

    Raises:
        KDError: an unknown target, or a file that is missing.
    """
    store = Store(spec.folder / ".kdcompile")
    target = resolve_target(spec.target)
    parts = key_parts(spec, target, store.hasher)
    store.hasher.save()
    return Plan(spec, target, store, parts)


def resolve_target(name: str) -> Target:
    """The target; a workstation's with the TensorRT that is installed here, if one is."""
    target = load(name)
    found = version("tensorrt")
    if target.kind == "workstation" and found is not None:
        return target.with_backend(found)
    return target
