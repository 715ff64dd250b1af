"""Reasons for running a step: what its key covers now against what the newest entry's covered.

Beside an entry `STAGE/KEY` of the store lies `STAGE/KEY.json` with what its key is the hash of; the
rows of a split, which several steps share, lie once in `splits/`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcompile.core.files import write_json
from kdcompile.core.readers import read_json
from kdcompile.core.store import KEY_CHARS, RECORD, Artifact, Store, canonical, digest
from kdcompile.data.splits import Row
from kdcompile.passes.keys import FILES

SPLIT_FOLDER = "splits"
MOST_TOLD = 3  # changes of one kind
MOST_CHARS = 40  # of a value
ABSENT = object()
UNSEEN = "spec: other fields are read now, none of which is set"
NEVER = "never made here"
REUSED = "an earlier build made it from the same inputs: reused"

Cover = Mapping[str, Any]
Change = tuple[tuple[str, ...], Any, Any]  # where, what was and what is


def keep(store: Store, artifact: Artifact, cover: Cover, rows: Mapping[str, Sequence[Row]]) -> None:
    """Keep beside an entry what its key covered.

    Raises:
        OSError: the store cannot be written.
    """
    for split, held in cover["splits"].items():
        path = store.root / SPLIT_FOLDER / f"{held[:KEY_CHARS]}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            _write(path, [[n, sha[:KEY_CHARS], of[:KEY_CHARS]] for n, sha, of in rows[split]])
    _write(artifact.path.with_name(f"{artifact.path.name}.json"), cover)


def drop_unused(store: Store) -> None:
    """Remove what is kept of entries that are gone."""
    used: set[str] = set()
    for path in store.root.glob(f"*/{'?' * KEY_CHARS}.json"):
        if path.parent.name == SPLIT_FOLDER:
            continue
        if path.with_suffix("").is_dir():
            cover = _read(path) or {"splits": {}}
            used |= {held[:KEY_CHARS] for held in cover["splits"].values()}
        else:
            path.unlink(missing_ok=True)
    for path in store.root.glob(f"{SPLIT_FOLDER}/*.json"):
        if path.stem not in used:
            path.unlink(missing_ok=True)


def reasons(
    store: Store, stage: str, key: str | None, cover: Cover, rows: Mapping[str, Sequence[Row]]
) -> list[str]:
    """What makes a step run, a sentence each; `REUSED` where its entry turns out to be there.

    That is so of a step whose key was not known before a step that it needs was made.

    Args:
        store: where its earlier entries are.
        stage: its name.
        key: None where its inputs are not made yet.
        cover: what its key covers, with the inputs that are made.
        rows: what the splits hold now.
    """
    if key is not None and store.entry(stage, key).is_dir():
        whole = store.find(stage, key) is not None
        return [REUSED if whole else "its entry in the store is damaged"]
    kept = _newest(store, stage)
    if kept is None:
        return [NEVER]
    now = json.loads(canonical(cover))
    if key is None:  # of inputs that are not made yet nothing is known
        kept["inputs"] = {n: files for n, files in kept["inputs"].items() if n in now["inputs"]}
    names = [(one["target"] or {}).get("full_name") for one in (kept, now)]
    if names[0] != names[1]:  # everything of another device or mode differs
        kept["target"], now["target"] = names
    found: dict[str, list[str]] = {}
    for change in _changes(kept, now):
        for kind, told in _told(change, store, rows):
            if told not in found.setdefault(kind, []):
                found[kind].append(told)
    told_of = [sentence for kind, told in found.items() for sentence in _few(kind, told)]
    return told_of or [UNSEEN] * (key is not None)


def _few(kind: str, told: Sequence[str]) -> Iterator[str]:
    yield from (f"{kind}: {one}" for one in told[:MOST_TOLD])
    if len(told) > MOST_TOLD:
        yield f"{kind}: and {len(told) - MOST_TOLD} more"


def _newest(store: Store, stage: str) -> dict[str, Any] | None:
    """What the key of the newest entry covered that says so."""
    kept = [
        path
        for path in store.root.glob(f"{stage}/{'?' * KEY_CHARS}.json")
        if (path.with_suffix("") / RECORD).is_file()
    ]
    newest = sorted(kept, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((cover for path in newest if (cover := _read(path)) is not None), None)


def _write(path: Path, value: Any) -> None:
    write_json(path, {"value": value, "sha256": digest(value)})


def _read(path: Path) -> Any:
    """What `_write` wrote, or None where that is not there, or not whole."""
    try:
        kept = read_json(path, finite=False)
        return kept["value"] if kept["sha256"] == digest(kept["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _changes(old: Any, new: Any, at: tuple[str, ...] = ()) -> Iterator[Change]:
    """Where two JSON values differ, down to what is no object."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        # a field that is not set and one that is not read say the same to a reader
        if old != new and (old, new) not in ((ABSENT, None), (None, ABSENT)):
            yield at, old, new
        return
    for name in sorted({*old, *new}):
        yield from _changes(old.get(name, ABSENT), new.get(name, ABSENT), (*at, name))


def _told(
    change: Change, store: Store, rows: Mapping[str, Sequence[Row]]
) -> Iterator[tuple[str, str]]:
    """A change as its kind and what changed."""
    at, old, new = change
    part, path = at[0], at[1:]
    if part == "splits" and path and ABSENT in (old, new):
        yield "data", f"{path[0]} is {'read now' if old is ABSENT else 'no longer read'}"
    elif part == "splits" and path:
        yield from (("data", told) for told in _rows_told(path[0], old, rows, store))
    elif part == "spec" and FILES in path[1:-1]:
        section = path[: path.index(FILES)]
        yield ".".join(section), _file_told(path[len(section) + 1], old, new)
    elif part == "spec" and len(path) == 1 and isinstance(old, dict) != isinstance(new, dict):
        yield path[0], "is read now" if isinstance(new, dict) else "is no longer read"
    elif part == "spec" and ABSENT in (old, new) and {dict} & {type(old), type(new)}:
        yield "spec", _file_told(".".join(path), old, new)  # one of several sections
    elif part == "spec":
        yield "spec", f"{'.'.join(path)} {_values(old, new)}"
    elif part == "source":
        yield "kdcompile", _file_told("/".join(path) or "the version of this step", old, new)
    elif part == "inputs":
        yield path[0], _file_told("/".join(path[1:]) or "its files", old, new)
    else:
        yield part, " ".join([*([".".join(path)] if path else []), _values(old, new)])


def _file_told(name: str, old: Any, new: Any) -> str:
    if old is ABSENT:
        return f"{name} is new"
    return f"{name} is gone" if new is ABSENT else f"{name} changed"


def _values(old: Any, new: Any) -> str:
    return f"{_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    if value is ABSENT or value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 3]}..."


def _rows_told(
    split: str, held: str, rows: Mapping[str, Sequence[Row]], store: Store
) -> Iterator[str]:
    """What changed in a split, image by image."""
    kept = _read(store.root / SPLIT_FOLDER / f"{held[:KEY_CHARS]}.json")
    if kept is None:
        yield f"{split} changed"
        return
    old = {name: (sha, of) for name, sha, of in kept}
    new = {n: (sha[:KEY_CHARS], of[:KEY_CHARS]) for n, sha, of in rows[split]}
    for name, (image, annotation) in new.items():
        was = old.get(name, (image, annotation))
        if was[0] != image:
            yield f"{name} changed"
        elif was[1] != annotation:
            yield f"annotation of {name} changed"
    yield from (f"{name} is new in {split}" for name in new if name not in old)
    yield from (f"{name} is no longer in {split}" for name in old if name not in new)
    if new == old:
        yield f"{split} is in another order"
