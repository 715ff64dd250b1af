"""Python distributions that a build used: versions, file hashes and licences (`LICENCES.md`)."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from kdcompile.core.errors import KDError
from kdcompile.core.escape import markdown
from kdcompile.core.files import write_text

ROOT = "kdcompile"
NOT_OF_A_BUILD = ("dev",)  # the extra whose libraries make no bundle
UNKNOWN = "unknown"
LONGEST_NAME = 100  # a longer `License` field is the text of a licence, not its name
LOCAL_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")


@dataclass(frozen=True)
class Used:
    """A distribution that is installed where the bundle was made.

    name: normalised; licence: its name, or UNKNOWN; licence_source: the metadata field that says
    so, or empty; wheel_sha256: of the archive it was installed from, where the installer wrote it;
    files_sha256: over the sorted `path,hash` lines of its RECORD, None where it is editable;
    needs: names of the others that it requires.
    """

    name: str
    version: str
    licence: str
    licence_source: str
    wheel_sha256: str | None
    files_sha256: str | None
    needs: tuple[str, ...]


def used(root: str = ROOT) -> list[Used]:
    """The root and, through what each requires, every distribution that is installed for it.

    Of the root's extras all count but those of development. Sorted by name.

    Raises:
        KDError: `not-installed`, the root runs from a folder that was never installed.
    """
    todo, found = [normal(root)], dict[str, Used]()
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError as error:
            if name == normal(root):
                raise KDError(
                    "not-installed",
                    f"{root} has no metadata here, so what it uses cannot be listed",
                    where="the Python that runs it",
                    fix="pip install -e . in the repository",
                ) from error
            continue  # an extra that is not installed
        needs = sorted(set(_needs(here, all_extras=name == normal(root))))
        found[name] = _used(here, name, needs)
        todo += needs
    return [_only_found(found[name], found) for name in sorted(found)]


def _only_found(one: Used, found: dict[str, Used]) -> Used:
    needs = tuple(name for name in one.needs if name in found)
    return Used(**{**vars(one), "needs": needs})


def normal(name: str) -> str:
    """A distribution's name as PyPI normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _needs(here: Distribution, *, all_extras: bool) -> Iterator[str]:
    """Names of what a distribution requires on this system."""
    extras = set(here.metadata.get_all("Provides-Extra") or ()) if all_extras else set()
    for text in here.requires or ():
        requirement = Requirement(text)
        wanted = [{"extra": extra} for extra in ("", *(extras - {*NOT_OF_A_BUILD}))]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(dict(each)) for each in wanted):
            yield normal(requirement.name)


def _used(here: Distribution, name: str, needs: list[str]) -> Used:
    licence, source = licence_of(here)
    wheel, editable = _origin(here)
    files = None if editable else _files_sha256(here.read_text("RECORD"))
    return Used(name, here.version, licence, source, wheel, files, tuple(needs))


def licence_of(here: Distribution) -> tuple[str, str]:
    """The licence's name and the field of the metadata that gives it; UNKNOWN where none does."""
    metadata = here.metadata
    expression = str(metadata["License-Expression"] or "").strip()
    if expression:
        return expression, "License-Expression"
    texts = metadata.get_all("Classifier") or []
    named = [c.split(" :: ")[-1] for c in texts if c.startswith("License :: ")]
    named = [n for n in named if n not in ("OSI Approved", "Other/Proprietary License")] or named
    short = " ".join(str(metadata["License"] or "").split())
    if short and short.upper() != "UNKNOWN" and len(short) <= LONGEST_NAME:
        return short, "License"
    if named:
        return ", ".join(named), "Classifier"
    return UNKNOWN, ""


def _origin(here: Distribution) -> tuple[str | None, bool]:
    """SHA-256 of the archive that it came in, and whether it is editable (PEP 610)."""
    text = here.read_text("direct_url.json")
    if not text:
        return None, False
    origin = json.loads(text)
    sha256 = (origin.get("archive_info") or {}).get("hashes", {}).get("sha256")
    return sha256, bool((origin.get("dir_info") or {}).get("editable"))


def _files_sha256(record: str | None) -> str | None:
    """A hash over RECORD's hashes, without the lines that differ by where and how it was put."""
    if not record:
        return None
    lines = []
    for line in record.splitlines():
        path, _, rest = line.partition(",sha256=")
        is_local = path.startswith("..") or path.rsplit("/", 1)[-1] in LOCAL_FILES
        if rest and not is_local:
            lines.append(f"{path},{rest.split(',')[0]}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else None


NAME = "LICENCES.md"
OURS = (
    "the files of kdcompile in this bundle: `infer.py`, `tiles.py`, `agent.pyz`, `cpp/`, `kit/*.py`"
)
HEAD = """# Licences

What the metadata of each distribution says of itself; nobody has read the texts for this list.
`unknown` means that the metadata name no licence.

| what | licence |
|---|---|
| the network (`model.onnx`, an engine, the networks of `kit/` or `parity/`), the validation \
images beside it | not stated by the spec |
| {ours} | {licence} |
| TensorRT, CUDA and the driver, where the device runs an engine | NVIDIA's, which come with them; \
no file of theirs is in this bundle |

## Python distributions of the build

None of them is in this bundle. `infer.py` needs numpy, onnxruntime and pillow where it runs.

| distribution | version | licence | from |
|---|---|---|---|
"""


def write_licences(folder: Path, packages: Sequence[Used]) -> None:
    """Write the list of `distributions.used()`."""
    write_text(folder / NAME, table(packages))


def table(packages: Sequence[Used]) -> str:
    """The list as Markdown."""
    ours = next((one.licence for one in packages if one.name == "kdcompile"), UNKNOWN)
    rows = [
        f"| {markdown(one.name)} | {markdown(one.version)} | {markdown(one.licence)} "
        f"| {one.licence_source or '-'} |"
        for one in packages
    ]
    unknown = [one.name for one in packages if one.licence == UNKNOWN]
    note = f"\nUnknown: {', '.join(map(markdown, unknown))}.\n" if unknown else "\n"
    return HEAD.format(ours=OURS, licence=ours) + "\n".join(rows) + "\n" + note.lstrip("\n")
