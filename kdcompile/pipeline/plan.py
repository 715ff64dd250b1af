"""What a build would do, and the build itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from kdcompile.artifact import Artifact, Step, Store
from kdcompile.pipeline.keys import library_version, step_keys
from kdcompile.pipeline.stages import STAGES, upstream
from kdcompile.spec import Spec
from kdcompile.targets import Target, load

log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Plan:
    """A spec bound to a target, with the key of every step."""

    spec: Spec
    target: Target
    store: Store
    keys: Mapping[str, str]

    def find(self, stage: str) -> Artifact | None:
        """The stage's finished artifact, if it is in the store."""
        return self.store.find(stage, self.keys[stage])

    def make(self, stage: str) -> Artifact:
        """Run the stage, and first whatever it needs that is not in the store.

        Raises:
            KDError: any stage's.
        """
        found = self.find(stage)
        if found is not None:
            return found
        made: dict[str, Artifact] = {}
        for name in upstream(stage):
            cached = self.find(name)
            made[name] = cached if cached is not None else self._run(name, made)
        return made[stage]

    def _run(self, name: str, made: Mapping[str, Artifact]) -> Artifact:
        stage = STAGES[name]
        log.info("%s", name)
        step = Step(
            name,
            self.keys[name],
            self.spec.only(stage.sections),
            {needed: made[needed] for needed in stage.inputs},
        )
        return stage.load()(step, self.store, self.target)


def make_plan(spec: Spec) -> Plan:
    """Resolve the target, hash what the steps depend on, and name every step's key.

    Raises:
        KDError: an unknown target, or a file that is missing.
    """
    store = Store(spec.folder / ".kdcompile")
    target = resolve_target(spec.target)
    keys = step_keys(spec, target, store.hasher)
    store.hasher.save()
    return Plan(spec, target, store, keys)


def resolve_target(name: str) -> Target:
    """The target; a workstation's with the TensorRT that is installed here, if one is."""
    target = load(name)
    found = library_version("tensorrt")
    if target.kind == "workstation" and found is not None:
        return target.with_backend(found)
    return target
