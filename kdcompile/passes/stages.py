"""Table of the stages: what each runs, what it may read of the spec, what its key covers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from kdcompile.config.step import Step
from kdcompile.core.store import Artifact, Store
from kdcompile.targets import Target

ALL = ("*",)
Run = Callable[[Step, Store, Target], Artifact]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: also the command that runs it alone, and the module of its `run(step, store, target)`.
        inputs: the stages whose artifacts it takes, each with the files whose content is in its
            key: `ALL` of them, or none where only the order matters.
        sections: the parts of the spec that it may read; they are in its key.
        splits: the splits of the data that it reads; their content is in its key.
        version: in the key of an installed release, where a checkout has the hashes of the source
            files; it rises when a release changes the stage's results.
        on_target: the target is in its key.
        on_machine: the machine is in its key, since it measures.
        parallel: all processes of a job run it together; the others are the first one's.
    """

    name: str
    inputs: Mapping[str, tuple[str, ...]]
    sections: tuple[str, ...]
    splits: tuple[str, ...]
    version: int = 1
    on_target: bool = False
    on_machine: bool = False
    parallel: bool = False

    @property
    def module(self) -> str:
        """The full name of its module, which is imported when it runs."""
        return f"kdcompile.passes.{self.name}"

    def load(self) -> Run:
        """The stage's function."""
        run: Run = import_module(self.module).run
        return run


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="teacher",
            inputs={},
            sections=("task", "teacher", "data", "student", "export"),
            splits=("train", "val"),
        ),
        Stage(
            name="search",
            inputs={},
            sections=(
                "seed", "task", "teacher", "teachers", "data", "student", "search", "distill",
                "export", "quantize", "compile",
            ),
            splits=("train", "val"),
            on_target=True,
        ),
        Stage(
            name="distill",
            inputs={"teacher": (), "search": ("architecture.json", "initial.safetensors")},
            sections=(
                "seed", "task", "teacher", "teachers", "data", "student", "distill", "export",
                "quantize",
            ),
            splits=("train", "val", "unlabelled"),
            parallel=True,
        ),
        Stage(
            name="export",
            inputs={"distill": ("student.safetensors", "architecture.json")},
            sections=("task", "teacher", "data", "student", "export"),
            splits=("val",),
            on_target=True,
        ),
        Stage(
            name="calibrate",
            inputs={
                "distill": ("qad.json",),
                "export": ("student.onnx", "teacher.onnx", "preprocess.json"),
            },
            sections=("seed", "task", "data", "quantize", "export", "gates"),
            splits=("train", "val"),
            on_target=True,
        ),
        Stage(
            name="compile",
            inputs={
                "teacher": ("teacher.json",),
                "search": ("estimate.json",),
                "export": ALL,
                "calibrate": ALL,
            },
            sections=("task", "data", "quantize", "compile", "export", "gates"),
            splits=("val",),
            on_target=True,
            on_machine=True,
        ),
        Stage(
            name="verify",
            inputs={
                "teacher": ALL,
                "search": ALL,
                "distill": ALL,
                "export": ALL,
                "calibrate": ALL,
                "compile": ALL,
            },
            sections=(
                "target", "seed", "task", "teacher", "data", "student", "distill", "export",
                "quantize", "compile", "gates",
            ),
            splits=("test",),
            on_target=True,
            on_machine=True,
        ),
        Stage(
            name="bundle",
            inputs={
                "distill": ("metrics.jsonl",),
                "calibrate": ("calibration.json", "audit.json"),
                "compile": ALL,
                "verify": ALL,
            },
            sections=("target", "task", "data", "export", "quantize"),
            splits=(),
            on_target=True,
        ),
    )
}  # fmt: skip


def upstream(name: str) -> list[str]:
    """The stages that a stage needs, itself last, in order."""
    needed = {name}
    for stage in reversed(STAGES.values()):
        if stage.name in needed:
            needed |= set(stage.inputs)
    return [stage for stage in STAGES if stage in needed]
