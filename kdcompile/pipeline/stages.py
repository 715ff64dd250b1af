"""Each stage: what it runs, what it may read of the spec, and what its cache key covers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from kdcompile.artifact import Artifact, Step, Store
from kdcompile.targets import Target

ALL = ("*",)
Run = Callable[[Step, Store, Target], Artifact]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: also the command that runs it alone.
        module: where its `run(step, store, target)` is; imported when it runs.
        inputs: the stages whose artifacts it takes, each with the files whose content is in its
            key: `ALL` of them, or none where only the order matters.
        sections: the parts of the spec that it may read; they are in its key.
        splits: the splits of the data that it reads; their content is in its key.
        packages: the packages and modules of kdcompile whose source is in its key.
        libraries: the distributions whose versions are in its key.
        on_target: the target is in its key.
        on_machine: the machine is in its key, since it measures.
        parallel: all processes of a job run it together; the others are the first one's.
    """

    name: str
    module: str
    inputs: Mapping[str, tuple[str, ...]]
    sections: tuple[str, ...]
    splits: tuple[str, ...]
    packages: tuple[str, ...]
    libraries: tuple[str, ...]
    on_target: bool = False
    on_machine: bool = False
    parallel: bool = False

    def load(self) -> Run:
        """The stage's function."""
        run: Run = import_module(self.module).run
        return run


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="teacher",
            module="kdcompile.distill.teacher",
            inputs={},
            sections=("task", "teacher", "data", "student", "export"),
            splits=("train", "val"),
            packages=("data", "models", "distill", "kernels"),
            libraries=("torch", "numpy", "pillow"),
        ),
        Stage(
            name="search",
            module="kdcompile.search.stage",
            inputs={},
            sections=(
                "seed", "task", "teacher", "teachers", "data", "student", "search", "distill",
                "export", "quantize", "compile",
            ),
            splits=("train", "val"),
            packages=(
                "data", "models", "kernels", "calib", "distill", "export", "backends", "bench",
                "search", "targets",
            ),
            libraries=(
                "torch", "triton", "numpy", "scipy", "pillow", "onnx", "onnxscript", "onnxslim",
                "onnxruntime",
            ),
            on_target=True,
        ),
        Stage(
            name="distill",
            module="kdcompile.distill.stage",
            inputs={"teacher": (), "search": ("architecture.json", "initial.safetensors")},
            sections=(
                "seed", "task", "teacher", "teachers", "data", "student", "distill", "export",
                "quantize",
            ),
            splits=("train", "val"),
            packages=("data", "models", "distill", "kernels"),
            libraries=("torch", "triton", "numpy", "pillow"),
            parallel=True,
        ),
        Stage(
            name="export",
            module="kdcompile.export.stage",
            inputs={"distill": ("student.safetensors", "architecture.json")},
            sections=("task", "teacher", "data", "student", "export"),
            splits=("val",),
            packages=("data", "models", "export"),
            libraries=(
                "torch", "numpy", "pillow", "onnx", "onnxscript", "onnxslim", "onnxruntime",
            ),
            on_target=True,
        ),
        Stage(
            name="calibrate",
            module="kdcompile.calib.stage",
            inputs={"distill": ("qad.json",), "export": ("student.onnx", "preprocess.json")},
            sections=("seed", "task", "data", "quantize", "export", "gates"),
            splits=("train", "val"),
            packages=("data", "calib", "kernels"),
            libraries=("numpy", "pillow", "onnx", "onnxruntime", "torch"),
            on_target=True,
        ),
        Stage(
            name="compile",
            module="kdcompile.backends.stage",
            inputs={
                "teacher": ("teacher.json",),
                "search": ("estimate.json",),
                "export": ALL,
                "calibrate": ALL,
            },
            sections=("task", "data", "quantize", "compile", "export", "gates"),
            splits=("val",),
            packages=("data", "calib", "kernels", "backends", "targets"),
            libraries=("numpy", "pillow", "torch", "onnx", "onnxruntime", "tensorrt-rtx"),
            on_target=True,
            on_machine=True,
        ),
        Stage(
            name="verify",
            module="kdcompile.gates.stage",
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
            packages=("data", "backends", "bench", "gates", "report"),
            libraries=("numpy", "scipy", "pillow", "torch", "onnx", "onnxruntime"),
            on_target=True,
            on_machine=True,
        ),
        Stage(
            name="bundle",
            module="kdcompile.bundle.stage",
            inputs={
                "distill": ("metrics.jsonl",),
                "export": ("preprocess.json",),
                "calibrate": ("calibration.json", "audit.json"),
                "compile": ALL,
                "verify": ALL,
            },
            sections=("target", "task", "data", "export", "quantize"),
            splits=(),
            packages=("bundle", "backends", "targets", "report"),
            libraries=(
                "jinja2", "matplotlib", "numpy", "pillow", "onnx", "onnxruntime", "packaging",
            ),
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
