"""The checked spec of what a Python caller passes: a path, a loaded spec, or objects.

Networks and data sets that are objects are written, by content, to a folder of their own; the
stages then see an ordinary spec.
"""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from kdcompile.config.distill import Distill
from kdcompile.config.load import find_spec, load_spec, parse_spec
from kdcompile.config.spec import DEFAULT_NAME, Spec, Task
from kdcompile.core.errors import KDError
from kdcompile.core.escape import toml
from kdcompile.data.splits import SPLITS

if TYPE_CHECKING:
    from torch import nn

AnyPath = str | PathLike[str]
Section = Mapping[str, Any]
WORK = ".kdcompile-work"  # in the current folder
OWN = ("name", "work", "version", "sets")  # that are no fields of a spec


class Inputs(TypedDict, total=False):
    """What a verb takes by keyword: fields of a spec, of which some may be objects.

    Attributes:
        teacher: a torch.nn.Module with its weights, or the section of a spec.
        data: `train`, `val` and `test`, each a list of (image, label), a map-style data set or a
            DataLoader of one, with `mean`, `std`, ... next to them; or the section of a spec.
        task: its kind, or the section of a spec.
        target: name of the device.
        seed: of all random numbers.
        teachers, student, search, distill, export, quantize, compile, gates: sections of a spec.
            `student["family"]` may be a torch.nn.Module.
        name: of the build; the class of the teacher by default.
        work: folder of the artifacts of objects, `.kdcompile-work` by default.
        version: of the objects; raise it where their code changes in a way that is not seen.
        sets: `KEY=VALUE` overrides, as of `--set`.
    """

    teacher: "nn.Module | Section"
    teachers: "Sequence[nn.Module | Section]"
    data: Section
    task: str | Section
    target: str | None
    seed: int
    student: Section
    search: Section
    distill: Section
    export: Section
    quantize: Section
    compile: Section
    gates: Section
    name: str
    work: AnyPath
    version: str
    sets: Sequence[str]


def spec_of(spec: AnyPath | Spec | None, inputs: Inputs) -> Spec:
    """The spec that a caller means.

    Args:
        spec: a loaded spec; a file or folder; or None for objects, else for the current folder.
        inputs: the other arguments. With a path its fields replace those of the file.

    Raises:
        KDError: `inputs-twice`, `inputs-unused`; those of reading a spec and of writing objects.
    """
    given: dict[str, Any] = {name: value for name, value in inputs.items() if value is not None}
    if isinstance(spec, Spec):
        if given:
            raise KDError(
                "inputs-twice",
                f"a loaded spec is passed together with {', '.join(given)}",
                where="the arguments",
                fix="pass the path of the spec with them, or change the spec where it is loaded",
            )
        return spec
    if spec is None and any(map(_is_object, (given.get("teacher"), given.get("data")))):
        return _of_objects(given)
    unused = [name for name in OWN[:-1] if name in given]
    if unused or any(map(_is_object, given.values())):
        raise KDError(
            "inputs-unused",
            f"{', '.join(unused) or 'a network or data set'} is passed with the path of a spec",
            where="the arguments",
            fix="pass teacher= and data= as objects without a path, or only values with one",
        )
    sets = (*_overrides(given), *given.get("sets", ()))
    return load_spec(find_spec(None if spec is None else str(spec)), sets, given.get("target"))


def _is_object(value: Any) -> bool:
    """Whether a value is a network, or a section that holds networks or data sets."""
    if isinstance(value, Mapping):
        return any(_is_data(name, one) or _is_object(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return any(map(_is_object, value))
    return hasattr(value, "state_dict") and hasattr(value, "named_modules")


def _is_data(name: str, value: Any) -> bool:
    return name in SPLITS and not isinstance(value, str | Mapping)


def _overrides(given: Mapping[str, Any]) -> Iterator[str]:
    """Fields as `--set` takes them."""
    for section, value in given.items():
        if section in (*OWN, "target"):
            continue
        if section == "task" and isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            yield f"{section}={toml(value)}"
        else:
            yield from (f"{section}.{name}={toml(one)}" for name, one in value.items())


def _of_objects(given: Mapping[str, Any]) -> Spec:
    """The spec of a network or of data sets that are objects."""
    from kdcompile.models.given import register, written

    teacher, version = given.get("teacher"), str(given.get("version", ""))
    name = str(given.get("name") or type(teacher).__name__)
    folder = Path(given.get("work", WORK)).absolute() / name
    raw = {section: value for section, value in given.items() if section not in OWN}
    if isinstance(raw.get("task"), str):
        raw["task"] = {"kind": raw["task"]}

    def network(value: Any) -> Any:
        if not _is_object(value):
            return value
        return {"model": register(value, version), "weights": str(written(value, folder))}

    raw |= {section: network(raw[section]) for section in ("teacher",) if section in raw}
    raw["teachers"] = [network(one) for one in raw.get("teachers", ())]
    student = dict(raw.get("student", {}))
    if _is_object(student):
        raw["student"] = student | {"family": register(student["family"], version)}
    if _is_object(raw.get("data")):
        _write_data(raw, folder)
    path = folder / DEFAULT_NAME
    return parse_spec(raw, path, Path.cwd(), given.get("sets", ()))


def _write_data(raw: dict[str, Any], folder: Path) -> None:
    """Put the data's section in the place of its objects, with the sizes that follow from it."""
    from kdcompile.data.given import written

    kind = raw.get("task", {}).get("kind", Task().kind)
    raw["data"], first = written(raw["data"], kind, folder / "data")
    if first is None:  # of named tensors, whose shapes the caller gives
        return
    raw["export"] = {"shape": [1, *first]} | dict(raw.get("export", {}))
    largest = Distill.model_fields["crop"].default
    sizes: dict[str, Any] = {"crop": max(8, min(largest, *first[1:]))}
    usual = {} if kind == Task().kind else {"recipe": "kd"}  # the spec's default is for counting
    raw["distill"] = sizes | usual | dict(raw.get("distill", {}))
