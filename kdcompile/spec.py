"""`kdcompile.toml`: what the user asks for, as a closed schema (design section 3)."""

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from kdcompile.errors import KDError, nearest

DEFAULT_NAME = "kdcompile.toml"
PATH_FIELDS = (("teacher", "weights"), ("student", "weights"), ("data", "root"))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _fraction(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise ValueError('write a percentage, such as "5%"')
    return text


Percent = Annotated[str, AfterValidator(_fraction)]
Evidence = Literal["device", "host", "predicted"]
Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=4, max_length=4)]


def fraction(percent: str) -> float:
    """0.05 of "5%"."""
    return float(percent.rstrip("%")) / 100


class Closed(BaseModel):
    """A section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(Closed):
    """What the network does. Later kinds add classification and regression."""

    kind: Literal["counting"] = "counting"


class Teacher(Closed):
    """The trained network: a factory for its architecture and a file with its weights."""

    model: str
    weights: Path


class Data(Closed):
    """Images with point annotations, in three splits."""

    format: str
    root: Path
    train: str = "train.txt"
    val: str = "val.txt"
    test: str = "test.txt"
    annotations: str = "annotations.jsonl"
    files: list[str] = Field(default=["**/*"], description="what a factory reads, globs under root")
    mean: list[float] = Field(default=list(IMAGENET_MEAN), description="per channel, of 0..1")
    std: list[Annotated[float, Field(gt=0)]] = Field(default=list(IMAGENET_STD))
    sigma: float = Field(default=1.0, gt=0, description="Gaussian of a point, in output cells")
    max_test: int | None = Field(default=None, ge=1, description="judge on this many test images")

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        known = ("points-jsonl", "shanghaitech-mat")
        if self.format not in known and ":" not in self.format:
            raise ValueError(f'use one of {", ".join(known)} or "module:factory"')
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std need one number per channel each")
        return self


class Budget(Closed):
    """Exactly one of four ways to say how small the student must be."""

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
    init: Literal["random", "file"] = "random"
    weights: Path | None = None

    @model_validator(mode="after")
    def _file_named(self) -> Self:
        if (self.init == "file") != (self.weights is not None):
            raise ValueError('init = "file" and weights = "..." go together')
        if self.family != "shrink" and ":" not in self.family:
            raise ValueError('use "shrink" or "module:factory"')
        return self


class Distill(Closed):
    """The training of the student."""

    recipe: str = "skt"
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    taps: Literal["auto"] | list[tuple[str, str]] = "auto"
    batch: int = Field(default=16, ge=1)
    crop: int = Field(default=512, ge=8, description="side of the square training crop, pixels")
    scale: tuple[float, float] = Field(default=(0.7, 1.4), description="random zoom of a crop")
    flip: bool = True
    colour: float = Field(default=0.2, ge=0, le=1, description="brightness and contrast jitter")
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    ema: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    reduction: Literal["mean", "paper"] = "mean"
    weights: dict[str, float] = Field(default={}, description="loss weights by term")
    evaluations: int = Field(default=10, ge=1, description="validations during training")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [n for n in ("steps", "epochs", "minutes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"name one of steps, epochs, minutes, not {' and '.join(given)}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale needs 0 < low <= high")
        return self


class Shapes(Closed):
    """Input shapes of a dynamic export."""

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        ordered = all(a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True))
        fixed = self.min[:2] == self.opt[:2] == self.max[:2]
        if not ordered or not fixed:
            raise ValueError("min <= opt <= max, with the same batch and channels, must hold")
        return self


class Export(Closed):
    """The input shape of the deployed network: fixed, or a range of heights and widths."""

    shape: Shape | Shapes = [1, 3, 576, 768]

    @property
    def profile(self) -> tuple[list[int], list[int], list[int]]:
        """Smallest, typical and largest input shape, each [N, C, H, W]."""
        if isinstance(self.shape, Shapes):
            return self.shape.min, self.shape.opt, self.shape.max
        return self.shape, self.shape, self.shape

    @property
    def is_dynamic(self) -> bool:
        """True when height or width may vary."""
        low, _, high = self.profile
        return low != high


class Quantize(Closed):
    """The precision of the deployed network and how its ranges are found."""

    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    calibrator: Literal["entropy", "percentile", "mse", "minmax"] = "entropy"
    images: int = Field(default=128, ge=1)
    qad: Literal[False] = False


class GateSpec(Closed):
    """What every gate may say."""

    required: bool = True
    evidence: Evidence = "host"


class AccuracyGate(GateSpec):
    """Student against teacher, paired over the test images."""

    metric: Literal["mae", "rmse"] = "mae"
    max_increase: Percent = "5%"
    margin: Percent = "15%"


class SpeedupGate(GateSpec):
    """Teacher latency over student latency."""

    min: float = Field(gt=0)


class SizeGate(GateSpec):
    """The largest deployable file, in units of 10^6 bytes."""

    max: float = Field(gt=0)


class ParityGate(GateSpec):
    """Deployed network against the trained one on the same images."""

    min_sqnr_db: float = 20.0


class Gates(Closed):
    """The proofs that the build must bring."""

    accuracy: AccuracyGate = AccuracyGate()
    parity: ParityGate = ParityGate()
    speedup: SpeedupGate | None = None
    size_mb: SizeGate | None = None


class Spec(Closed):
    """One build. `folder` and `name` come from where the file lies."""

    target: str = "jetson"
    seed: int = 0
    task: Task = Task()
    teacher: Teacher
    data: Data
    student: Student = Student()
    distill: Distill = Distill()
    export: Export = Export()
    quantize: Quantize = Quantize()
    gates: Gates = Gates()

    _path: Path = PrivateAttr(default=Path(DEFAULT_NAME))

    @model_validator(mode="after")
    def _one_image_of_known_channels(self) -> Self:
        batch, channels = self.export.profile[1][:2]
        if batch != 1 or channels not in (1, 3):
            raise ValueError(f"export.shape must be [1, 1 or 3, H, W], not {batch} x {channels}")
        if len(self.data.mean) != channels:
            raise ValueError(
                f"data.mean has {len(self.data.mean)} numbers, export.shape {channels} channels"
            )
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

    def only(self, sections: Iterable[str]) -> "Spec":
        """The same spec with other sections absent, so that a stage reads what its key covers."""
        view = Spec.model_construct(**{name: getattr(self, name) for name in sections})
        for name in set(Spec.model_fields) - set(sections):
            view.__dict__.pop(name, None)
        view._path = self._path
        return view


def find_spec(argument: str | None) -> Path:
    """The spec file named by a folder, a file, or nothing (the current folder).

    Raises:
        KDError: `spec-missing`.
    """
    given = Path(argument or ".")
    path = given / DEFAULT_NAME if given.is_dir() else given
    if not path.is_file():
        raise KDError(
            "spec-missing",
            f"there is no {path.name} here" if argument is None else f"{path} does not exist",
            where=str(path.absolute()),
            fix="kdcompile init --example digits . && kdcompile build --target jetson",
        )
    return Path(os.path.abspath(path))


def parse_set(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as its key path and value; the value is TOML if it parses, else a string."""
    key, mark, raw = text.partition("=")
    parts = key.strip().split(".")
    if not mark or not all(parts):
        raise KDError(
            "set-syntax", f"--set {text!r} is not key=value", fix="--set distill.steps=60"
        )
    try:
        return parts, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return parts, raw


def load_spec(path: Path, sets: Sequence[str] = (), target: str | None = None) -> Spec:
    """Read and check a spec; path fields come out absolute.

    Args:
        path: the TOML file.
        sets: `key=value` overrides; their paths resolve against the current folder.
        target: overrides the spec's target.

    Raises:
        KDError: `spec-syntax`, `spec-invalid` or `set-syntax`.
    """
    path = Path(os.path.abspath(path))
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KDError(
            "spec-syntax", f"not valid TOML: {error}", str(path), "mend the line that is named"
        ) from error
    _absolute_paths(raw, path.parent)
    for text in sets:
        keys, value = parse_set(text)
        override: dict[str, Any] = {}
        _put(override, keys, value, text)
        _absolute_paths(override, Path.cwd())
        _put(raw, keys, reduce(getitem, keys, override), text)
    if target is not None:
        raw["target"] = target
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path) from error
    spec._path = path
    return spec


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise KDError("set-syntax", f"--set {text!r}: {key} is not a section", fix="see schema")
        tree = below
    tree[keys[-1]] = value


def _absolute_paths(raw: dict[str, Any], base: Path) -> None:
    for section, key in PATH_FIELDS:
        values = raw.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = str(Path(base, values[key]).resolve())


def _explain(error: ValidationError, path: Path) -> KDError:
    """The first problem, with the nearest known key where the key is unknown."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    where = f"{path} [{dotted}]" if dotted else str(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        message = f"unknown key {dotted!r}{nearest(location[-1], known)}{more}"
        return KDError("spec-invalid", message, where, f"use one of {', '.join(sorted(known))}")
    if first["type"] == "missing":
        return KDError("spec-invalid", f"{dotted} is missing{more}", where, f"add {dotted}")
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    fix = "kdcompile schema prints what each field takes"
    named = f"{dotted}: {message}" if dotted else message
    return KDError("spec-invalid", f"{named}{got}{more}", where, fix)


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Spec
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = getattr(annotation, "__args__", (annotation,))
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
