"""The files that hold a network's weights, where one file names others: shards, external data."""

from pathlib import Path

from kdcompile.core.errors import KDError
from kdcompile.core.readers import read_json

INDEX = ".index.json"  # how the index of shards ends


def files_of(path: Path) -> list[Path]:
    """The file and those that it names, in the order of their names.

    Args:
        path: weights, the index of their shards, or an ONNX file.

    Raises:
        KDError: `weights-unreadable`, for an index that is none; `weights-missing`, for a shard.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return [path, *(_next_to(path, name) for name in sorted({*shards_of(path).values()}))]
    if path.suffix == ".onnx" and path.is_file():
        return [path, *_external(path)]
    return [path]


def shards_of(index: Path) -> dict[str, str]:
    """The file of each tensor, by the index of a model in shards.

    Raises:
        KDError: `weights-unreadable`.
    """
    try:
        found = read_json(index)["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KDError(
            "weights-unreadable",
            "the file is no index of shards: it has no weight_map",
            where=str(index),
            fix="copy it again, or name the one file of weights",
        ) from error


def _next_to(path: Path, name: str) -> Path:
    found = path.parent / name
    if Path(name).name != name or not found.is_file():
        raise KDError(
            "weights-missing",
            f"{path.name} names {name!r}, which is no file next to it",
            where=str(path),
            fix="put all shards into the folder of their index",
        )
    return found


def _external(path: Path) -> list[Path]:
    """The files of an ONNX network's external data; those that are missing are found at loading."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # no ONNX file: what reads it says so
        return []
    names = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    return [path.parent / name for name in sorted(names) if (path.parent / name).is_file()]
