"""The cache key of a step: everything that its result depends on, and nothing else."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcompile.config.distill import NO_EFFECT
from kdcompile.config.export import Export
from kdcompile.config.gates import Gates
from kdcompile.config.spec import Spec, Task, Teacher
from kdcompile.config.step import Board
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.core.sources import source_key, sources_of
from kdcompile.core.store import Artifact, digest
from kdcompile.core.user_code import factory_sources
from kdcompile.core.weight_files import files_of
from kdcompile.data.pool import FIELD, pool_rows
from kdcompile.data.splits import Row, splits_rows
from kdcompile.distill.unlabelled import uses_pool
from kdcompile.environment import doctor
from kdcompile.latency.environment import fingerprint_id
from kdcompile.passes.stages import ALL, STAGES, Stage
from kdcompile.targets import Target

# what the content of the data's files stands for, or what verification alone reads
DATA_FIELDS_BY_CONTENT = {
    "root", "train", "val", "test", "unlabelled", "annotations", "files", "max_test",
}  # fmt: skip

# what a search for a student reads and a mere scaling of the teacher does not
SEARCHED = {"data", "search", "distill", "teachers"}

version = cache(doctor.version)  # a process goes on with what it has imported
# libraries that compute nothing of a result, and a backend's, whose version the board's facts have
SHOW_AND_CHECK = {"filelock", "openvino", "pydantic", "pydantic_core", "rich", "safetensors"}

FILES = "files"  # of a section: what is hashed, by name

# what a training in int8 reads of [quantize]
QAD_FIELDS = {"qad", "qad_scales", "qad_start", "calibrator"}


def key_parts(
    spec: Spec,
    target: Target,
    hasher: Hasher,
    board: Board | None = None,
    rows: Mapping[str, Sequence[Row]] | None = None,
) -> dict[str, dict[str, Any]]:
    """What each stage's key covers beside the content of its inputs.

    `rows` are those of the splits, where they are known already.

    Raises:
        KDError: a file that the spec names is missing or unreadable.
    """
    rows = data_rows(spec, hasher) if rows is None else rows
    splits = {split: digest(held) for split, held in rows.items()}
    used = {stage.name: sources_of(stage.module).libraries for stage in STAGES.values()}
    versions = {
        name: version(name) for name in sorted(set().union(*used.values()) - SHOW_AND_CHECK)
    }
    return {
        stage.name: {
            "stage": stage.name,
            "spec": {name: _section(spec, name, stage, hasher, target) for name in stage.sections},
            "splits": {
                name: splits[name]
                for name in stage.splits
                if name in splits and not _unread(stage, spec)
            },
            "source": source_key(stage.module, stage.version),
            "libraries": {n: v for n, v in versions.items() if n in used[stage.name]},
            "target": target.to_json() | {"full_name": target.full_name}
            if stage.on_target
            else None,
            "machine": fingerprint_id() if measures(stage, spec) else None,
            "board": {"place": board.label} | dict(board.facts)
            if board is not None and measures(stage, spec)
            else None,
            **({"plugins": brought} if (brought := _plugins(stage, spec, target)) else {}),
            **({"name": spec.name} if stage.name == "bundle" else {}),
        }
        for stage in STAGES.values()
    }


def data_rows(spec: Spec, hasher: Hasher) -> dict[str, list[Row]]:
    """The rows of the splits, and of photos without labels where a training reads them.

    Raises:
        KDError: those of `splits_rows` and `pool_rows`.
    """
    rows = splits_rows(spec.data, spec.folder, hasher)
    if uses_pool(spec):
        rows[FIELD] = pool_rows(spec.data, spec.folder, hasher, rows)
    return rows


def network_key(
    spec: Spec, output: str, joins_outputs: bool, hasher: Hasher, module: str, number: int
) -> str:
    """The key of the teacher's ONNX file at its typical shape.

    Args:
        spec: names the teacher, and the shapes of what it takes.
        output: the name that the file gives the network's output.
        joins_outputs: whether it is made of several, as the task says.
        hasher: of the store.
        module: that exports it, by its full name.
        number: what an installed release keys by in place of the source.
    """
    libraries = sources_of(module).libraries - SHOW_AND_CHECK
    return digest(
        {
            "teacher": _teacher(spec.teacher, spec, hasher, "teacher"),
            "shape": spec.export.profile[1],
            "ports": {n: one.model_dump(mode="json") for n, one in spec.export.inputs.items()},
            "output": output,
            **({"joined": True} if joins_outputs else {}),
            "source": source_key(module, number),
            "libraries": {name: version(name) for name in sorted(libraries)},
        }
    )


def measures(stage: Stage, spec: Spec) -> bool:
    """Whether the stage times networks, so that its result is of a machine."""
    searching = stage.name == "search" and spec.student.searches
    return stage.on_machine or (searching and spec.search.measure > 0)


def _unread(stage: Stage, spec: Spec) -> bool:
    """Whether the stage is a search that looks at neither data nor training."""
    return stage.name == "search" and not spec.student.searches


def _plugins(stage: Stage, spec: Spec, target: Target) -> dict[str, str]:
    """The distributions, with their versions, of the plug-ins that a stage runs."""
    used: list[tuple[str, str]] = []
    if "task" in stage.sections:
        used.append(("tasks", spec.task.kind))
    if "data" in stage.sections and not _unread(stage, spec):
        used.append(("formats", spec.data.format))
    if "distill" in stage.sections and not _unread(stage, spec):
        recipes = [spec.distill.recipe, *(one.recipe or "" for one in spec.distill.stages)]
        used += [("recipes", name.strip()) for one in recipes for name in one.split("+")]
    if stage.name == "calibrate" or (stage.name == "distill" and spec.quantize.qad):
        used.append(("calibrators", spec.quantize.calibrator))
    if stage.name == "verify":
        used += [("gates", name) for name in spec.gates.named()]
    if stage.on_target:
        used.append(("targets", target.name))
    asked = spec.compile.backend if "compile" in stage.sections else "auto"
    backend = target.runtime if asked == "auto" else asked
    if measures(stage, spec):
        used.append(("backends", backend))
    brought = {f"{kind[:-1]} {name}": plugins.brought_by(kind, name) for kind, name in used}
    return {name: by for name, by in brought.items() if by}


def step_key(stage: Stage, parts: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
    """The key of a step whose inputs are made: by their content, so an equal result is a hit."""
    return digest(covered(stage, parts, inputs))


def covered(
    stage: Stage, parts: Mapping[str, Any], inputs: Mapping[str, Artifact]
) -> dict[str, Any]:
    """All that the key of a step is the hash of; of inputs that are not made yet nothing."""
    content = {
        name: {f: sha for f, sha in inputs[name].files.items() if files == ALL or f in files}
        for name, files in stage.inputs.items()
        if name in inputs
    }
    return {**parts, "inputs": content}


def _section(spec: Spec, name: str, stage: Stage, hasher: Hasher, target: Target) -> Any:
    """The values of a section; files by their content, under `FILES`."""
    value = _seen(getattr(spec, name), stage)
    if name in SEARCHED and _unread(stage, spec):
        return None
    if name == "compile" and not measures(stage, spec):
        return None
    if name == "search":
        return value.model_dump(mode="json", exclude=set(NO_EFFECT))
    if name == "data":
        fields = value.model_dump(mode="json", exclude=DATA_FIELDS_BY_CONTENT)
        limit = value.max_test if "test" in stage.splits else None
        return fields | {"max_test": limit, FILES: _code(value.format, spec, hasher)}
    if name == "teacher":
        return _teacher(value, spec, hasher, name)
    if name == "teachers":  # by number, from 1 as a reader counts, so that changes have a place
        return {str(n): _teacher(teacher, spec, hasher, name) for n, teacher in enumerate(value, 1)}
    if name == "student" and stage.name == "teacher":
        return {"own": ":" in value.family}  # whose classes may be more than the teacher's
    if name == "student":
        fields = value.model_dump(mode="json", exclude={"weights"})
        files = _file(value.weights, hasher, "student.weights")
        return fields | {FILES: _code(value.family, spec, hasher) | files}
    if name == "quantize" and stage.name == "distill":
        return value.model_dump(mode="json", include=QAD_FIELDS) if value.qad else None
    if name == "quantize":
        fields = value.model_dump(mode="json", exclude={"cache"})
        return fields | {FILES: _file(value.cache, hasher, "quantize.cache")}
    if name == "gates":
        return _gates(value, stage, spec, hasher, target)
    return _whole(value, spec, hasher)


def _seen(value: Any, stage: Stage) -> Any:
    """A section without what only another stage does."""
    if isinstance(value, Export) and stage.name != "compile":
        return value.model_copy(update={"nms": "none"})
    return value


def _whole(value: Any, spec: Spec, hasher: Hasher) -> Any:
    """A section that counts as it is; of a task of the user's own with its source."""
    code: dict[str, str] = {}
    if isinstance(value, Task):
        for named in (value.kind, value.metric, value.decode, value.loss):
            code |= _code(named or "", spec, hasher)
        code |= _file(value.head.anchors, hasher, "task.head.anchors", inner=2)
    fields = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    if isinstance(value, Task):
        del fields["head"]["anchors"]  # by its content
    if isinstance(value, Task) and value.metric is None:
        del fields["metric"]  # as before there was one
    return fields | {FILES: code} if code else fields


def _teacher(teacher: Teacher, spec: Spec, hasher: Hasher, section: str) -> dict[str, Any]:
    """A teacher by its code and the content of its files, shards and external data included."""
    field = next(f for f in ("weights", "onnx", "program") if getattr(teacher, f) is not None)
    files = _code(teacher.model, spec, hasher)
    files |= _file(teacher.file, hasher, f"{section}.{field}")
    files |= {path.name: hasher.file(path) for path in files_of(teacher.file)[1:]}
    more = teacher.model_dump(mode="json", include={"arguments", "entry"}, exclude_defaults=True)
    return {"model": teacher.model, **more, FILES: files}


def _gates(gates: Gates, stage: Stage, spec: Spec, hasher: Hasher, target: Target) -> Any:
    """What a stage reads of `[gates]`; what lies elsewhere by the files that stand for it."""
    if stage.name == "calibrate":
        return gates.accuracy.metric
    if stage.name == "compile" and not target.is_foreign:
        return gates.model_dump(mode="json", include={"accuracy", "parity"})  # a kit has them all
    if stage.name != "verify":
        return gates.to_json()
    files = {
        f"{name}.{field}": sha
        for name, settings in gates.named().items()
        for field, path in settings.files(spec.folder).items()
        for sha in _file(path, hasher, f"gates.{name}.{field}").values()
    }
    return gates.to_json() | ({FILES: files} if files else {})


def _file(path: Path | None, hasher: Hasher, key: str, inner: int = 1) -> dict[str, str]:
    """The hash of a file that a field of the spec names, by that field: its name is nothing.

    `inner` is the place in the key of what the field is called in errors.
    """
    parts = key.split(".")
    section, field = parts[0], parts[inner]
    if path is None:
        return {}
    if not path.is_file():
        is_one = section != "teachers"  # --set gives a list of sections whole or not at all
        raise KDError(
            f"{field}-missing",
            "this is a folder, not a file" if path.is_dir() else "there is no such file",
            where=str(path),
            fix=f"correct the path{f', or pass it with --set {key}=PATH' if is_one else ''}",
        )
    return {field: hasher.file(path)}


def _code(factory: str, spec: Spec, hasher: Hasher) -> dict[str, str]:
    """The source of a factory by its place; nothing for the name of something of kdcompile's."""
    if ":" not in factory:
        return {}
    files = factory_sources(factory, spec.folder)
    return {_place(path, spec.folder): hasher.file(path) for path in files}


def _place(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
