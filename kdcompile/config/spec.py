"""`kdcompile.toml`: what the user asks for, as a closed schema (design section 3)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from kdcompile.config.deploy import Compile, Quantize
from kdcompile.config.detection import Head
from kdcompile.config.distill import INHERITED_RATE, Closed, Distill, Search
from kdcompile.config.export import Export
from kdcompile.config.gates import Gates
from kdcompile.config.named import Named
from kdcompile.core import plugins

DEFAULT_NAME = "kdcompile.toml"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Scores(Closed):
    """An output whose values along one of its axes are scores of classes."""

    axis: int = Field(ge=-8, le=7, description="of the output, its batch axis counted")
    form: Literal["logits", "probabilities"] = "logits"


class Task(Closed):
    """What the network predicts of an image: a count, a class, or a number."""

    kind: Annotated[str, Named("tasks", "file.py:Class")] = "counting"
    metric: str | None = Field(
        default=None,
        pattern=r"^(rel_error|disagreement|.+:\w+)$",
        description='of generic: "rel_error", "disagreement" or "file.py:score"',
    )
    metric_over: Literal["sample", "set"] = Field(
        default="sample", description="what a function of yours takes: one sample, or all of them"
    )
    outputs: dict[str, Scores] = Field(
        default={}, description="of generic: the outputs that are scores along an axis"
    )
    decode: str | None = Field(
        default=None, description='of detection: "centre", "yolov8", ... or "file.py:decode"'
    )
    loss: str | None = Field(
        default=None, pattern=r"^.+:\w+$", description='of detection: "file.py:loss"'
    )
    head: Head = Field(default=Head(), description="of detection: what the outputs mean")

    @model_validator(mode="after")
    def _a_function_over_a_set(self) -> Self:
        if self.metric_over == "set" and ":" not in (self.metric or ""):
            raise ValueError('metric_over = "set" needs metric = "file.py:score"')
        return self


class Teacher(Closed):
    """The trained network: a factory and a file with its weights, or one file that has both."""

    model: str = Field(
        default="", description='"file.py:name", "package.module:name" or "timm:NAME"'
    )
    arguments: dict[str, bool | int | float | str] = Field(
        default={}, description="what the factory is called with, by keyword"
    )
    weights: Path | None = Field(
        default=None, description="state_dict, checkpoint, safetensors or the index of its shards"
    )
    entry: str | None = Field(
        default=None, description="the state_dict to take of a checkpoint that holds several"
    )
    onnx: Path | None = Field(default=None, description="an ONNX file, in place of model")
    program: Path | None = Field(
        default=None, description="a file of torch.export.save (.pt2), in place of model"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, given: Any) -> Any:
        """Factory and weights, or one file; what is missing is named as a field is."""
        if not isinstance(given, dict):
            return given
        files = [name for name in ("onnx", "program") if given.get(name) is not None]
        others = [name for name in ("model", "arguments", "weights", "entry") if given.get(name)]
        problem, fix = "", "name model and weights, or onnx, or program"
        if files and len(files + others) > 1:
            problem = f"{files[0]} stands alone, without {', '.join((files + others)[1:])}"
        elif not files and not given.get("model"):
            problem, fix = "model is missing", f"add model; or {fix}"
        elif not files and given.get("weights") is None:
            problem, fix = (
                "weights is missing",
                "add weights, the file of the network's trained weights",
            )
        if problem:
            raise PydanticCustomError("teacher_form", problem, {"fix": fix})
        return given

    @property
    def file(self) -> Path:
        """The file that holds the trained weights."""
        found = self.weights or self.onnx or self.program
        assert found is not None, "one of them is named"
        return found

    @property
    def named(self) -> str:
        """The factory, or the file that stands for it, as an error names it."""
        return self.model or str(self.file)


class Data(Closed):
    """Annotated images, in three splits."""

    format: Annotated[str, Named("formats", "module:factory")]
    root: Path
    train: str = "train.txt"
    val: str = "val.txt"
    test: str = "test.txt"
    unlabelled: str | list[str] | None = Field(
        default=None,
        description="images without labels, to train on and to label next: folders, globs, lists",
    )
    annotations: str = "annotations.jsonl"
    files: list[str] = Field(default=["**/*"], description="what a factory reads, globs under root")
    mean: list[float] = Field(default=list(IMAGENET_MEAN), description="per channel, of 0..1")
    std: list[Annotated[float, Field(gt=0)]] = Field(default=list(IMAGENET_STD))
    sigma: float = Field(default=1.0, gt=0, description="Gaussian of a point, in output cells")
    max_test: int | None = Field(default=None, ge=1, description="judge on this many test images")
    classes: list[str] = Field(default=[], description="names by index, of masks or a factory")
    ignore_index: int = Field(
        default=255, ge=0, le=255, description="of pixels that masks say nothing of"
    )
    labels: Literal["boxes", "masks"] = Field(
        default="boxes", description="that coco reads; by default those of the task"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_format(cls, given: Any) -> Any:
        """A format's own defaults: an image folder's splits are folders, and no lists."""
        name = given.get("format") if isinstance(given, dict) else None
        found = plugins.plugin("formats", name) if isinstance(name, str) else None
        return given if found is None else {**getattr(found.value, "defaults", {}), **given}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(Path(p).is_absolute() or ".." in Path(p).parts or not p for p in self.files):
            raise ValueError("files are patterns under root, without ..")
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std need one number per channel each")
        return self


SMALLER = 1 - 2.0**-40  # share of the parameters of any student with fewer than the teacher


class Budget(Closed):
    """Exactly one of four ways to say how small the student must be.

    `width` is a share of the teacher's channels, and of its parameters where the student is of
    another family; 1 asks for nothing.
    """

    speedup: float | None = Field(default=None, gt=1)
    latency_ms: float | None = Field(default=None, gt=0)
    macs: float | None = Field(default=None, gt=0)
    width: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("name exactly one of speedup, latency_ms, macs, width")
        return self


class Student(Closed):
    """How the student is derived and from where it starts."""

    family: str = "shrink"
    budget: Budget = Budget(width=0.25)
    init: Literal["inherit", "random", "file"] = "inherit"
    weights: Path | None = None
    importance: Literal["activation", "taylor"] = Field(
        default="activation", description="how inherited channels are ranked"
    )
    crops: int = Field(default=32, ge=1, description="training crops that inheriting looks at")

    @model_validator(mode="before")
    @classmethod
    def _own_student_starts_by_itself(cls, given: Any) -> Any:
        """A student of another family shares no channels with the teacher.

        Without a budget it must have fewer parameters, or, where it is deployed already, nothing.
        """
        if isinstance(given, dict) and ":" in str(given.get("family", "")):
            init, width = ("file", 1.0) if given.get("weights") else ("random", SMALLER)
            return {"init": init, "budget": {"width": width}, **given}
        return given

    @property
    def searches(self) -> bool:
        """Whether a search makes the student, and not a given or a scaled one."""
        return self.family == "search" and self.init != "file"

    @model_validator(mode="after")
    def _file_named(self) -> Self:
        if (self.init == "file") != (self.weights is not None):
            raise ValueError('init = "file" and weights = "..." go together')
        derived = self.family in ("shrink", "search")
        if not derived and ":" not in self.family:
            raise ValueError('use "shrink", "search", "timm:NAME" or "module:factory"')
        if not derived and self.init == "inherit":
            raise ValueError('init = "inherit" needs family "shrink" or "search"')
        if self.family == "search" and self.budget.width is not None:
            raise ValueError("a search needs a budget of speedup, latency_ms or macs")
        return self


class Spec(Closed):
    """One build. `folder` and `name` come from where the file lies."""

    target: str = "jetson"
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: Task = Task()
    teacher: Teacher
    teachers: list[Teacher] = Field(default=[], description="more of them, for some recipes")
    data: Data
    student: Student = Student()
    search: Search = Search()
    distill: Distill = Distill()
    export: Export = Export()
    quantize: Quantize = Quantize()
    compile: Compile = Compile()
    gates: Gates = Field(default_factory=Gates)

    _path: Path = PrivateAttr(default=Path(DEFAULT_NAME))

    @model_validator(mode="after")
    def _one_image_of_known_channels(self) -> Self:
        task = plugins.plugin("tasks", self.task.kind)
        metrics = [
            metric.name
            for field in ("metrics", "map_metrics")
            for metric in getattr(task and task.value, field, ())
        ]
        problem = self.gates.check_metrics(self.task.kind, metrics) if metrics else None
        if problem is not None:
            raise ValueError(problem)
        if getattr(task and task.value, "takes_rows", False):
            self._refuse_with_rows()
        elif task is not None and self.task.outputs:
            raise ValueError(f'task.outputs needs task.kind = "generic", not {self.task.kind}')
        if self.export.nms != "none" and getattr(task and task.value, "labels", None) != "boxes":
            raise ValueError(f'export.nms needs task.kind = "detection", not {self.task.kind}')
        if self.export.inputs:
            if task is not None and not getattr(task.value, "takes_rows", False):
                raise ValueError(f'export.inputs needs task.kind = "generic", not {self.task.kind}')
            return self
        batch, channels = self.export.profile[0][:2]
        if batch != 1 or channels not in (1, 3):
            raise ValueError(f"export.shape must be [1, 1 or 3, H, W], not {batch} x {channels}")
        if len(self.data.mean) != channels:
            raise ValueError(
                f"data.mean has {len(self.data.mean)} numbers, export.shape {channels} channels"
            )
        return self

    def _refuse_with_rows(self) -> None:
        """What networks of any tensors do not have yet."""
        if self.student.searches:
            raise ValueError('task.kind "generic" has no search: use student.family = "shrink"')
        if self.quantize.qad:
            raise ValueError('task.kind "generic" has no quantize.qad')
        if self.distill.precision == "bfloat16":  # it rounds integers above 256
            raise ValueError('task.kind "generic" has no distill.precision = "bfloat16"')
        if "strata" in self.gates.named():
            raise ValueError('task.kind "generic" has no parts of its samples for gates.strata')
        if self.export.preprocess != "host":
            raise ValueError(
                'task.kind "generic" has no export.preprocess = "in-graph": its networks take '
                "named tensors as they are"
            )

    @model_validator(mode="after")
    def _training_of_the_task(self) -> Self:
        """What the spec does not name follows from its task, and from where the student starts."""
        task = plugins.plugin("tasks", self.task.kind)
        rows = task is not None and getattr(task.value, "takes_rows", False)
        if rows and "recipe" not in self.distill.model_fields_set:
            # the teacher's outputs are the labels
            self.__dict__["distill"] = self.distill.model_copy(update={"recipe": "none"})
        labels = getattr(task and task.value, "labels", None)
        if labels is not None and "labels" not in self.data.model_fields_set:
            self.__dict__["data"] = self.data.model_copy(update={"labels": labels})
        if self.student.init == "inherit" and "lr" not in self.distill.model_fields_set:
            # the section is frozen for those who read it
            self.__dict__["distill"] = self.distill.model_copy(update={"lr": INHERITED_RATE})
        return self

    @property
    def path(self) -> Path:
        """The spec file, absolute."""
        return self._path

    @property
    def folder(self) -> Path:
        """The folder that code named by the spec may come from."""
        return self._path.parent

    @property
    def name(self) -> str:
        """The name of the spec's folder, which names the bundle."""
        return self.folder.name

    def at(self, path: Path) -> "Spec":
        """This spec, knowing the file that it is from."""
        self._path = path
        return self

    def only(self, sections: Iterable[str]) -> "Spec":
        """The same spec with other sections absent, so that a stage reads what its key covers."""
        view = Spec.model_construct(**{name: getattr(self, name) for name in sections})
        for name in set(Spec.model_fields) - set(sections):
            view.__dict__.pop(name, None)
        return view.at(self._path)
